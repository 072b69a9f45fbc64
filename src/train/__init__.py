"""Stage 2 and fine-tuning: a recipe, augmentation that knows where it looks, supervision by tokens, one run."""
