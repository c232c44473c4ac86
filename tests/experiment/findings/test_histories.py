import pandas as pd

from workbench.experiment.findings.histories import with_same_history
from workbench.load.workload.workload import Request, Workload, short

TURNS = Workload(
    name="m",
    seed=0,
    salt="",
    requests=tuple(
        Request(index=n, prompt_ids=[20], max_tokens=1, after=n - 2 if n > 1 else None)
        for n in range(6)
    ),
)


def rows(arm, texts, name="cold"):
    return pd.DataFrame(
        {"arm": arm, "round": 0, "pass": name, "index": range(6), "text": list(texts)}
    )


def test_turns_after_an_answer_that_parted_are_left_out_in_every_pass():
    frame = pd.concat(
        [rows("2a", "abcdef"), rows("1p1d", "abXdef"), rows("1p1d", "abXdef", "engine-warm")],
        ignore_index=True,
    )
    kept = with_same_history(frame, TURNS, "2a")
    assert kept[kept["arm"] == "2a"]["index"].tolist() == [0, 1, 2, 3, 4, 5]
    for name in ("cold", "engine-warm"):
        mine = kept[(kept["arm"] == "1p1d") & (kept["pass"] == name)]
        # The answer that parted is compared, what came behind it in its conversation is not.
        assert mine["index"].tolist() == [0, 1, 2, 3, 5]


def test_prompts_that_hold_no_answers_are_all_kept():
    frame = pd.concat([rows("2a", "abcdef"), rows("1p1d", "XXXXXX")], ignore_index=True)
    assert len(with_same_history(frame, short(requests=6, salt="s"), "2a")) == 12
