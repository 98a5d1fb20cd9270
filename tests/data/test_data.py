"""The names of the packages of mach_ext.data."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "formats",
            "Names counts_from_one decode_line iter_jsonl iter_xmc json_document label_matrix load_npz "
            "name_key parse_svmlight read_array read_jsonl read_lines read_matrix read_names read_npz "
            "read_numbered_names read_pairs read_sparse_text read_svmlight read_xmc shift_svmlight write_npz "
            "write_xmc",
        ),
        (
            "folders",
            "SVMLIGHT first_id fit_features read_features read_file read_folder read_svmlight_documents "
            "write_folder",
        ),
    ],
)
def test_what_was_one_module_has_the_same_names(package, names):
    module = importlib.import_module(f"mach_ext.data.{package}")
    assert sorted(module.__all__) == sorted(names.split())
    assert all(hasattr(module, name) for name in module.__all__)
