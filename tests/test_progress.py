"""Progress bars that are told to a function."""

import pytest

from hf_zipit.progress import progress, watched


def test_every_step_of_every_bar_is_told_also_of_bars_inside_bars():
    told = []
    with watched(lambda *step: told.append(step)):
        for item in progress([1, 2], "outer"):
            assert list(progress(range(item), "inner")) == list(range(item))
    assert told == [
        ("outer", 0, 2),
        *[("inner", 0, 1), ("inner", 1, 1)],
        ("outer", 1, 2),
        *[("inner", 0, 2), ("inner", 1, 2), ("inner", 2, 2)],
        ("outer", 2, 2),
    ]
    list(progress([1], "unwatched"))
    assert len(told) == 8


def test_a_bar_that_ends_early_or_has_no_length_still_tells_its_end():
    told = []
    with watched(lambda *step: told.append(step)):
        for _ in progress([1, 2, 3], "early"):
            break
        assert list(progress(iter("ab"), "unknown")) == ["a", "b"]
        with pytest.raises(ZeroDivisionError):
            list(progress((1 // one for one in (1, 0)), "broken"))
    assert told[1] == ("early", 3, 3)
    assert told[2:6] == [("unknown", 0, None), ("unknown", 1, None), ("unknown", 2, None), ("unknown", 2, 2)]
    assert told[-1] == ("broken", 1, 1)


def test_what_the_function_raises_ends_the_iteration():
    def stop(label, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with watched(stop), pytest.raises(KeyboardInterrupt):
        list(progress([1, 2, 3], "stopped"))
