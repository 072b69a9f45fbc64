"""Evaluation: accuracy of runs, result tables and figures, drawings of label maps, the report, prediction."""
