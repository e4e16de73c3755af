"""The packaging of plsc: `pip install '.[cpu]'` or `pip install '.[gpu]'`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+?)"', (here / "plsc" / "version.py").read_text(encoding="utf-8")).group(1)

setup(
    name="plsc",
    version=version,
    description="Trains classifiers with very many classes on PaddlePaddle; the last layer is sharded over the ranks",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The plsc contributors",
    keywords="paddlepaddle, face recognition, metric learning, arcface, cosface, partial fc, extreme classification",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Natural Language :: Chinese (Simplified)",
        "Natural Language :: English",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.9,<3.14",
    entry_points={"console_scripts": ["plsc=plsc.cli:main"]},
    packages=find_packages(include=["plsc", "plsc.*"]),
    package_data={"plsc": ["py.typed", "machine/site/sitecustomize.py", "zoo/*/*"]},
    install_requires=["numpy>=1.22", "pillow>=9.1", "hdfs>=2.7", "requests>=2.7", "tqdm>=4.60", "pyyaml>=5.4"],
    extras_require={
        "cpu": ["paddlepaddle>=3.3", "setuptools"],
        # 2.6.2 is the newest GPU build on the package index and predates NumPy 2 and protobuf 5.
        "gpu": ["paddlepaddle-gpu>=2.6.2", "numpy<2", "protobuf<5", "setuptools"],
        "hdfs": ["hdfs>=2.7", "hdfs-native>=0.14.7; python_version >= '3.10'"],
        # For WebHDFS alone; it is compiled with Kerberos's headers (Debian's libkrb5-dev and gcc).
        "kerberos": ["gssapi>=1.8"],
        # Object stores, and whatever else fsspec opens.
        "fsspec": ["fsspec>=2024.6"],
        "s3": ["s3fs>=2025.2"],
        "gcs": ["gcsfs>=2025.2"],
        "azure": ["adlfs>=2024.12"],
        "spark": ["pyspark>=3.5,<5"],
        "demo": ["matplotlib>=3.5"],
        "report": ["matplotlib>=3.6", "scikit-learn>=1.2"],
        "tensorboard": ["tensorboardX>=2.6"],
        "visualdl": ["visualdl>=2.5"],
        "search": ["faiss-cpu>=1.10"],
        "parquet": ["pyarrow>=12"],
        "base64": ["pybase64>=1.3"],  # decodes ten times as fast as Python
        "onnx": ["paddle2onnx>=2.1", "onnxruntime>=1.15", "onnx>=1.14"],
        # The site of the documentation; Zensical is the maintained successor of Material for MkDocs.
        "docs": ["zensical>=0.0.73; python_version >= '3.11'"],
        "dev": [
            "pytest>=7",
            "pytest-xdist>=3.7",
            "hypothesis>=6",
            "ruff>=0.6",
            "mypy>=1.8",
            "types-pyyaml",
            "matplotlib>=3.5",
            "safetensors>=0.4",
            "moto[s3,server]>=5; python_version >= '3.10'",
            "selenium>=4.20",
        ],
    },
)
