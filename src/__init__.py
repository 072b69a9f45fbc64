"""Token labeling: dense label maps from a pretrained annotator, aligned targets, and the training that uses them.

Source: Jiang et al. 2021, "All Tokens Matter: Token Labeling for Training Better Vision Transformers", arXiv 2104.10858.
"""

__version__ = "0.1.0"
