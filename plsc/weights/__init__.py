"""Weights that other programs have saved: files of PyTorch, Paddle, safetensors and ONNX, and what their names mean.

No file is ever run: pickles are read by `plsc.machine.pickles`, which knows tensors and nothing else.
"""
