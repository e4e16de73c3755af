"""The file that a test leaves for the report: what is written is what is read."""

import numpy as np
from run_folders import pairs

from plsc.report.pairs_file import PairArrays, read_pairs, write_pairs


def test_the_report_reads_what_a_test_writes(tmp_path):
    arrays = PairArrays(**pairs(np.random.default_rng(0)))
    write_pairs(tmp_path / "new", "lfw", arrays)
    notes = []
    found = read_pairs(tmp_path / "new" / "lfw_pairs.npz", notes)
    assert notes == []
    assert np.array_equal(found.similarity, arrays.similarity) and np.array_equal(found.issame, arrays.issame)
    assert [pair.number for pair in found.hard] == arrays.hard_pairs.tolist()
    assert np.array_equal([pair.images for pair in found.hard], arrays.hard_images)
    assert [list(pair.names) for pair in found.hard] == arrays.hard_names.tolist()
    assert np.array_equal(found.embeddings, arrays.map_embeddings)
    assert found.identities == arrays.map_identities.tolist()


def test_images_and_map_may_be_missing(tmp_path):
    write_pairs(tmp_path, "lfw", PairArrays(similarity=np.ones(2), issame=np.array([True, False])))
    with np.load(tmp_path / "lfw_pairs.npz") as content:
        assert set(content.files) == {"similarity", "issame"}
    found = read_pairs(tmp_path / "lfw_pairs.npz", [])
    assert found.hard == [] and len(found.embeddings) == 0 and found.identities == []
