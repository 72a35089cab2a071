"""Tables in Markdown."""

from train.markdown import grid


def test_a_table_has_words_to_the_left_and_numbers_to_the_right():
    assert grid(["case", "ms"], [["a", "1"], ["b", "2"]]) == (
        "| case | ms |\n|---|--:|\n| a | 1 |\n| b | 2 |"
    )
    assert grid(["n", "unit"], [], ["unit"]) == "| n | unit |\n|--:|---|"
