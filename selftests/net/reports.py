# SPDX-License-Identifier: Apache-2.0
"""What phalad said while all the others ran: last, because it looks back."""
import re

from rows import Topic, expect


def setup(lab):
    if not lab.phalad:
        lab.ready()


topic = Topic("reports", setup)


def nothing_like(lab, pattern):
    found = re.search(rf"^.*({pattern}).*\n(.*\n){{0,30}}", lab.log.read_text(), re.M)
    expect(not found, found and found[0])


@topic.row("no process of phalad died but by the tests' own hand")
def _(lab):
    nothing_like(lab, r"was killed by signal (?!9 )")


@topic.row("no sanitizer had anything to report, not at the end either", only="sanitized")
def _(lab):
    lab.stop()
    nothing_like(lab, r"ERROR: \w+Sanitizer|runtime error:|Sanitizer has encountered")
