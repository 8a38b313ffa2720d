from .fixtures import dataset, encode, files, labels, paths, photograph, write_tar  # noqa: F401 - fixtures for this folder
