from made_stores import in_a_process, shards

from dexcore.data.store import check_store
from dexcore.data.store.manifest import MANIFEST


def test_check_survives_damage_anywhere_in_a_shard(folder):
    """Headers and offsets included: each changed byte is noticed, none kills the process."""
    victim = shards(folder)[0]
    data = victim.read_bytes()

    def work() -> None:
        for place in range(0, len(data), 61):
            victim.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
            assert any(victim.name in problem for problem in check_store(folder)), place

    assert in_a_process(work) == (0, "")


def test_a_changed_column_changes_the_verdict(folder):
    overwrite_all = shards(folder)[0]
    data = overwrite_all.read_bytes()
    overwrite_all.write_bytes(data.replace(b"patient-0", b"patient-9"))
    assert check_store(folder) == [f"{overwrite_all}: its sha256 is not the one in {MANIFEST}"]
