"""Every event that a run records has a line for people."""

from strategies.event_lines import line_of

PROBLEMS = dict.fromkeys(("a", "b", "c", "d", "e", "f"), "it is not online")


def test_each_event_is_a_line_that_says_what_happened() -> None:
    round_ = {
        "event": "round", "round": 3, "released": True, "cohort": ["a", "b", "c"], "sites": ["a", "b"],
        "seconds": 1.234, "problems": {"c": "late"},
    }  # fmt: skip
    assert line_of(round_) == "round 3: released, 2 of 3 sites, 1.23 s; c: late"
    undone = {**round_, "released": False, "reason": "too few sites are ready", "problems": {}}
    assert line_of(undone) == "round 3: nothing released (too few sites are ready), 2 of 3 sites, 1.23 s"
    assert line_of({"event": "started", "rounds": 5, "sites": ["a"]}) == "begins: 5 rounds, 1 sites"
    waiting = line_of({"event": "waiting", "sites": ["g"], "minimum": 3, "problems": PROBLEMS})
    assert waiting.startswith("waits: 1 of 3 sites are ready; a: it is not online; ")
    assert waiting.endswith("; and 1 more")
    assert line_of({"event": "epoch", "epoch": 2, "leader": "a"}) == "key epoch 2, made at a"
    assert line_of({"event": "roster", "version": 2, "sites": ["a"]}) == "goes on under roster 2, with 1 of its sites"
    assert line_of({"event": "finished", "rounds": 5}) == "has finished: 5 rounds released a sum"
    assert line_of({"event": "stopped", "reason": "by ana"}) == "stopped: by ana"
    assert line_of({"event": "anything"}) == "anything"
