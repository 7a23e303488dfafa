"""What the table of fine_tuning says of its scores."""

from benchmarks.harness.tables import fine_tuning_table


def test_the_table_counts_the_cases_in_which_a_strategy_is_ahead_of_scratch():
    lines = [
        {"strategy": "scratch", "dsc": 0.5, "cases": {"a": 0.4, "b": 0.6}},
        {"strategy": "body", "dsc": 0.6, "cases": {"a": 0.7, "b": 0.5}},
    ]
    assert fine_tuning_table(lines).splitlines()[-1].split() == [
        "body",
        "0.600",
        "+0.100",
        "1",
        "of",
        "2",
    ]
