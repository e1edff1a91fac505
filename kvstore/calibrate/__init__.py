"""Calibration: what a codec learns of a model, and what it costs the model.

`documents` names the texts, `models` loads a model, `capture` keeps its keys and values on disk, `weights` and
`sensitivity` say which errors matter, `quality` measures them, `search` finds a level's step, `make` puts an artefact
together. torch and transformers are imported inside the functions that run a model.
"""
