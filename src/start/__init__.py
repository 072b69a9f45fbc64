"""From a folder of one's own photographs to a study of them."""
