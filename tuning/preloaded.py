"""Imported once, by the server that workers are forked from: they start with everything at hand and nothing in use."""

import gc

from loom import lazy

for _name in ("tensorflow", "keras", "mlflow", "layers", "loom.train", "loom.callbacks", "tuning.trial"):
    lazy.load(_name)

gc.collect()
gc.freeze()  # what is imported is no garbage, and need not be looked at after every trial
