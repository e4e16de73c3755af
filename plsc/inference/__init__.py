"""Embeds images with a network, and exports networks for other programs.

networks          what embeds a batch: `TrainedNetwork` (in training) and `ExportedNetwork` (loaded from an export)
program           translates a network for Paddle's inference library
export            writes an export
export_folder     the layout of an export: its manifest, and how to open it
onnx_file         makes the ONNX file of an export, and runs it, in a child process
classes           the classes nearest to embeddings, by the class centres of a checkpoint or of an export
foreign           runs foreign tools in a child process
precision         float16 and int8 for ONNX
comparison        how far the embeddings of an export are from those of the trained network
runtime           runs the files of an export, with Paddle's inference library or onnxruntime
predictor         `Predictor`, which embeds images with an export, for users
"""
