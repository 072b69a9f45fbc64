"""Tests of tokenlabel.segment."""
