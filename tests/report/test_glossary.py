"""Tooltips of the six product words: which uses of a word get one."""

import pytest

from workbench.report.glossary import GLOSSARY, with_tooltips


def marked(html):
    """The page's HTML with each marked word in brackets."""
    page = with_tooltips(f"<main >{html}</main>")
    for name in GLOSSARY:
        page = page.replace(f'<dfn tabindex="0" aria-describedby="term-{name}">', "[")
    return page.replace("</dfn>", "]").removeprefix("<main >").removesuffix("</main>")


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<p>each arm, every arm</p>", "<p>each [arm], every arm</p>"),
        ("<p>Arms in 3 rounds</p>", "<p>[Arms] in 3 [rounds]</p>"),
        ("arm<h2>An arm</h2>arm", "[arm]<h2>An arm</h2>[arm]"),
        ("<details>gate</details> gate gate", "<details>[gate]</details> [gate] gate"),
        ("● PASS: 3 passes", "● PASS: 3 [passes]"),
        ("round-robin, alarm, passed, <code>arm</code>", None),
        ("<pre>arm</pre><svg><text>arm</text></svg><a href='#'>arm</a>", None),
        ("<summary>2 rounds</summary><script>arm()</script>", None),
        ('<td data-label="arm">1p4d</td>', None),
    ],
)
def test_the_first_use_in_a_section_is_marked_and_no_other(html, shown):
    assert marked(html) == (shown or html)


def test_a_sentence_stands_for_each_word():
    assert list(GLOSSARY) == ["arm", "pass", "round", "gate", "doubt", "ledger"]
    assert all(text.endswith(".") for text in GLOSSARY.values())
    sentences = [part for text in GLOSSARY.values() for part in text.split(". ")]
    assert max(len(sentence.split()) for sentence in sentences) <= 25
