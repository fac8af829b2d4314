"""Imported once, by the server that workers are forked from: they start with everything at hand and nothing in use."""

from loom import lazy

for _name in ("tensorflow", "keras", "mlflow", "layers", "loom.train", "loom.callbacks", "tuning.trial"):
    lazy.load(_name)
