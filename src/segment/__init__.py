"""Transfer to semantic segmentation: augmented scenes, training of backbone and heads, measures, prediction (section 4.4)."""
