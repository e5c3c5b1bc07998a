from tests.packed.byte_table import CASES, PAGE, inside, packed_and_plain, section


def test_the_page_has_the_table_that_is_made():
    found = inside(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found.group(1) == section()


def test_counts_by_hand():
    """Records, slots and all of them; see tests/models/test_packed_sizes.py for how one expert's bytes come about."""
    mxfp4, fp8, q4_k_m = (packed_and_plain(case)[0] for case in CASES)
    assert (mxfp4.record, mxfp4.slot, mxfp4.records) == (13_236_480, 13_236_480, 24 * 32 * 13_236_480)
    assert (fp8.record, fp8.slot, fp8.records) == (4_719_744, 4_719_744, 48 * 128 * 4_719_744)
    smaller, larger = 6144 * 3 * 144, 6144 * (2 * 144 + 210)  # half of the layers have the larger down
    assert (q4_k_m.record, q4_k_m.slot) == ((smaller + larger) / 2, larger)
    assert (q4_k_m.records, q4_k_m.slots) == (24 * 128 * (smaller + larger), 48 * 128 * larger)
    assert mxfp4.token == 24 * 4 * 13_236_480
    outside = 2 * (20_914_757_184 - 24 * 32 * 24_891_840)  # attention, routers, embeddings and norms
    assert mxfp4.weights == outside + mxfp4.records
