"""The program behind `tools/process_base64_files.py`, which shuffles base64 data sets and splits them for the ranks."""
