"""The foundations of neural networks as comparisons: each file is one command that measures, prints and draws."""
