"""Fuzzers: ``python tests/fuzz.py load|checkpoint|safetensors|training [SECONDS [SEED]]``.

The first three read hostile files, which atheris makes (fuzzing/files.py); the last one draws configurations of a
training and compares what has to be equal (fuzzing/training.py), from SEED on.
"""

import sys


def main(kind, seconds="600", *seed):
    if kind == "training":
        from fuzzing import training

        training.main(float(seconds), *map(int, seed))
    else:
        from fuzzing import files  # which needs atheris

        files.main(kind, seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
