"""A store that fails at its k-th operation, and counts them: for every way a disk or a network can let us down."""

import errno
import os

from pyarrow import fs as pafs


class FaultyStore(pafs.FileSystemHandler):
    """A local folder behind pyarrow's interface for foreign stores; operation number `fails_at` raises."""

    def __init__(self, root, fails_at=None, error=errno.ENOSPC):
        self._inner = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
        self.fails_at, self.error, self.operations = fails_at, error, 0

    def _operate(self):
        self.operations += 1
        if self.operations - 1 == self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def get_type_name(self):
        return "faulty"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        self._operate()
        return self._inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self._operate()
        return self._inner.get_file_info(selector)

    def create_dir(self, path, recursive):
        self._operate()
        self._inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path):
        self._operate()
        self._inner.delete_dir(path)

    def delete_dir_contents(self, path, missing_dir_ok=False):
        self._operate()
        self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self):
        raise NotImplementedError

    def delete_file(self, path):
        self._operate()
        self._inner.delete_file(path)

    def move(self, src, dest):
        self._operate()
        self._inner.move(src, dest)

    def copy_file(self, src, dest):
        self._operate()
        self._inner.copy_file(src, dest)

    def open_input_stream(self, path):
        self._operate()
        return self._inner.open_input_stream(path)

    def open_input_file(self, path):
        self._operate()
        return self._inner.open_input_file(path)

    def open_output_stream(self, path, metadata):
        self._operate()
        # As object stores do: nothing is there before the stream is closed.
        return self._inner.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path, metadata):
        raise NotImplementedError
