"""
Read SQL text once, for its summary and for the text without its literals.

One loop goes over the tokens of one regular expression; each token is masked or copied, and moves a small state
machine that picks out operations and targets. In doubt more is masked: where systems, or settings that the text
does not show, disagree about the end of a string or comment, the rest of the text goes.
Source: OpenTelemetry semantic conventions v1.44, `db.query.summary` and sanitization of `db.query.text`.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import accumulate
from typing import Final, NamedTuple

READ_LIMIT: Final = 16_384  # characters; a bulk INSERT can have megabytes, and nobody displays them
SUMMARY_LIMIT: Final = 255  # characters, by the convention


class SQLReading(NamedTuple):
    """
    What one pass over a text found.
    """

    summary: str  # `db.query.summary`; empty when the text has no operation
    operation: str  # the first operation as written, such as `SELECT` or `CREATE TABLE`; empty without one
    masked: str  # the text with `?` for each literal, and without comments


def read_sql(sql: str, system: str = "other_sql", limit: int = READ_LIMIT) -> SQLReading:
    """
    Summarise and mask a text in one pass.

    Args:
        sql: Any text.
        system: The `db.system.name`; an unknown one gets the rules that mask most.
        limit: How many characters of the text are read.
    """
    rules = _RULES.get(system, _UNKNOWN)
    tokens, text, is_cut = _tokens(rules), sql[:limit], len(sql) > limit
    summary, masked, end = _Summary(), list[str](), 0
    while token := tokens.match(text, end):
        start, end = token.span()
        if token.lastgroup == "block":
            end = _comment_end(text, start, rules.comments_nest)
        elif is_cut and end == len(text) and token.lastgroup != "line":
            masked.append("?")  # half a token, maybe: neither its kind nor its end is known
        else:
            masked.append(summary.mask(token))
    parts = summary.finish()
    return SQLReading(" ".join(parts), parts[0] if parts else "", "".join(masked))


def _comment_end(text: str, start: int, comments_nest: bool) -> int:
    """
    Return the end of the block comment that starts at `start`.

    Where comments may not nest, what follows an inner end can be code, as is all of MySQL's `/*! … */`.
    A quote in code turns everything after it inside out: then the comment takes the rest.
    """
    depth, code = 0, start if text.startswith(("/*!", "/*M!"), start) else len(text)
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        code = code if edge[0] == "/*" else min(code, edge.end())
        if depth == 0:
            is_doubtful = not comments_nest and _CODE_QUOTE.search(text, code, edge.end())
            return len(text) if is_doubtful else edge.end()
    return len(text)


# The tokens. A string that has begun matches, if need be up to the end of the text; where another alternative fails
# late, the token that then matches takes up most of what was looked at: so the loop is linear in the text.
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_CODE_QUOTE = re.compile(r"['\"`$#-]")
_BACKSLASH = {  # rule: a backslash inside a string, and the end of a string that no quote closes
    "plain": (r"\\", r"\Z"),
    "escape": (r"\\.", r"\\?\Z"),
    "doubt": (r"\\[^{0}]", r"\\{0}.*|\\?\Z"),
}
_LINE = r"[^\r\n]*(?:\r(?!\n).*)?"  # a lone CR ends a comment in PostgreSQL and few others: the rest goes
# What may be no comment, as `--1` in MySQL: harmless, unless something opens in it that a later line closes.
_DOUBTFUL_LINE = r"[^\n'\"`$/]*['\"`$/].*"
_MYSQL_COMMENT = rf"--(?=[^\x00-\x20]){_DOUBTFUL_LINE}|(?:\#|--){_LINE}"
_DOUBTFUL_COMMENT = rf"(?:\#|--(?=[^\x00-\x20])){_DOUBTFUL_LINE}|(?:\#|--){_LINE}"
_WORD = r"[^\W\d][\w$]*"
_HASH_WORD = r"\#{0,2}[^\W\d][\w$#]*"
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\w*"
_DOLLAR_QUOTE = r"(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z)"
_ORACLE_QUOTE = r"[nN]?[qQ]'.*"  # q'[it's]' ends in too many ways
_MARK = r"\?|%s\b|%\([^\W\d]\w*\)s\b|:[^\W\d]\w*|@{1,2}[^\W\d][\w$@]*"
_DOLLAR_MARK = rf"{_MARK}|\$(?:\d+|[^\W\d]\w*)"
_NUMBERED_MARK = rf"[?:]\d+|{_DOLLAR_MARK}"  # elsewhere `:2` can be the end of an array slice


def _string(quote: str, rule: str) -> str:
    """
    Return the pattern of a string literal, closed or not.
    """
    inner, end = (pattern.format(quote) for pattern in _BACKSLASH[rule])
    return rf"{quote}[^{quote}\\]*(?:(?:{quote}{quote}|{inner})[^{quote}\\]*)*(?:{quote}|{end})"


def _quoted(left: str, right: str, never: str = "") -> str:
    """
    Return the pattern of a quoted name: closed, and without the characters `never`.
    """
    return rf"{left}[^{right}{never}]*(?:{right}{right}[^{right}{never}]*)*{right}(?!{right})"


class _Rules(NamedTuple):
    strings: str = "plain"
    e_strings: str = "plain"
    comment: str = f"--{_LINE}"
    word: str = _WORD
    marks: str = _DOLLAR_MARK
    double_is_name: bool = True
    brackets: bool = False
    comments_nest: bool = False


@cache
def _tokens(rules: _Rules) -> re.Pattern[str]:
    bracketed = [_quoted(r"\[", r"\]")] if rules.brackets else []
    names = "|".join([rules.word, _quoted("`", "`"), *bracketed])
    double = _quoted('"', '"', "" if rules.double_is_name else r"\\")
    first = double if rules.double_is_name else rf"{double}(?=\.)"
    string, e_string = _string("'", rules.strings), _string("'", rules.e_strings)
    kinds = {
        "space": r"\s+",
        "line": rules.comment,
        "block": r"/\*",
        "literal": rf"{_ORACLE_QUOTE}|(?:[xXbBnN]|[uU]&)?{string}|[eE]{e_string}|{_DOLLAR_QUOTE}|{_NUMBER}",
        "mark": rules.marks,
        "name": rf"(?:{names}|{first})(?:\s*\.{{1,2}}\s*(?:{names}|{double}))*",
        "maybe": double,  # a string or a name, as its place says
        "open": _string('"', rules.strings) + "|`.*" + (r"|\[.*" if bracketed else ""),
        "other": ".",
    }
    return re.compile("|".join(f"(?P<{kind}>{kinds[kind]})" for kind in kinds), re.DOTALL)


# Its mode NO_BACKSLASH_ESCAPES is left aside: `\'` is too common a way to write a quote there.
_MYSQL = _Rules("escape", "escape", _MYSQL_COMMENT, double_is_name=False)
_UNKNOWN = _Rules("doubt", "doubt", _DOUBTFUL_COMMENT, double_is_name=False)
_RULES = {
    # In doubt because of `standard_conforming_strings`: a leaked value is worse than a lost tail.
    "postgresql": _Rules("doubt", "escape", comments_nest=True),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": _Rules(marks=_NUMBERED_MARK, double_is_name=False, brackets=True),
    # $12 is money there.
    "microsoft.sql_server": _Rules(word=_HASH_WORD, marks=_MARK, brackets=True, comments_nest=True),
    "oracle.db": _Rules(word=_HASH_WORD, marks=_NUMBERED_MARK),
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DEFINING = _words("ALTER CREATE DROP")
_NAMING = _words("CALL COPY DELETE EXEC EXECUTE INSERT MERGE REPLACE TRUNCATE UPDATE")  # a name comes next
_VERBS = _DEFINING | _NAMING | {"SELECT"}
_PRECEDING = _words("BEGIN DESC DESCRIBE EXPLAIN")  # another statement can follow
_OBJECTS = _words(
    "DATABASE DOMAIN EVENT EXTENSION FUNCTION INDEX LOGIN PACKAGE POLICY PROCEDURE PUBLICATION ROLE RULE SCHEMA"
    " SEQUENCE SERVER STATISTICS SUBSCRIPTION SYNONYM TABLE TABLESPACE TRIGGER TYPE USER VIEW"
)
_LIST_ENDS = _words(
    "CONNECT EXCEPT FETCH GROUP HAVING INTERSECT LIMIT MINUS OFFSET OPTION ORDER OUTPUT QUALIFY RETURNING SET"
    " SHARE START UNION UPDATE VALUES WHERE WINDOW"
)
# What may stand between a keyword and its name.
_BEFORE_TABLE = _words("LATERAL ONLY")
_AFTER_OBJECT = _BEFORE_TABLE | _words("AUTHORIZATION BODY CONCURRENTLY EXISTS IF NOT ON")
_AFTER_VERB = _BEFORE_TABLE | _words(
    "ABORT ALL DELAYED FAIL FUNCTION IGNORE LOW_PRIORITY OR PROCEDURE QUICK REPLACE ROLLBACK TABLE TOP"
)
_NO_NAMES = _words("DUMPFILE FIRST IMMEDIATE LAST OUTFILE")  # `NTH_VALUE(…) FROM FIRST`, `INTO OUTFILE "…"`

_STRING_AS_NAME = re.compile(r"'[^\W\d]\w*'")
_OUTER_BLANK = re.compile(r"(\"[^\"]*\"|`[^`]*`|\[[^\]]*\])|\s+")
_NOT_LISTED = re.compile(r"[/\\;]|--|  ")


class _Level:
    """
    What one level of parentheses is reading.
    """

    def __init__(self, verb: str = "", start: str = "", row_source: int = -1) -> None:
        self.verb = verb
        self.start = start  # what starts a statement now: "any" word, a "verb", nothing
        self.skips = _AFTER_VERB if verb in _NAMING else None  # words before a name; None: no name comes
        self.lists = verb in ("TRUNCATE", "UPDATE")  # a comma or JOIN brings another table
        self.reads = verb in ("DELETE", "SELECT", "UPDATE")  # FROM brings a table
        self.uses = verb in ("DELETE", "MERGE")  # USING brings a table
        self.defines = verb in _DEFINING  # the object's type is still to come
        self.row_source = row_source  # the summary's length after the SELECT of an INSERT …
        self.from_values = False  # … and whether it reads a list of VALUES


class _Summary:
    """
    Collect operations and targets out of the tokens shown.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._levels = [_Level(start="any")]
        self._previous = ""  # the last word, in capitals, or the last other token

    def mask(self, token: re.Match[str]) -> str:
        """
        Take a token, and return what stands in its place.
        """
        kind, text, level = token.lastgroup, token[0], self._levels[-1]
        if kind == "line":
            return ""
        if kind == "name" and text.upper() not in ("TRUE", "FALSE"):
            self._word(text)
        elif kind == "maybe" and (level.skips is not None or self._previous == "."):
            self._name(text)
        elif kind in ("mark", "other"):
            self._character(text)
        elif kind != "space":
            if level.verb == "SELECT" and level.lists and _STRING_AS_NAME.fullmatch(text):
                self._name(text)
            self._character("?")
            return "?"
        return text

    def finish(self) -> list[str]:
        """
        Return the operations and targets that fit.
        """
        self._end_statement()
        ends = accumulate(len(part) + 1 for part in self._parts)
        return [part for part, end in zip(self._parts, ends, strict=True) if end <= SUMMARY_LIMIT + 1]

    def _name(self, text: str) -> None:
        """
        Take a name that is no keyword: a target, where one is due.
        """
        level, self._previous = self._levels[-1], "name"
        if level.skips is not None:
            level.skips = None
            name = _OUTER_BLANK.sub(r"\1", text)
            if re.search(r"\w", name) and name.isprintable() and not _NOT_LISTED.search(name):
                self._parts.append(name)

    def _character(self, text: str) -> None:
        level, before, self._previous = self._levels[-1], self._previous, text
        if text == "(":
            self._levels.append(self._inside(level, before))
        elif text == ")" and len(self._levels) > 1:
            self._end_level()
        elif text == ";":
            self._end_statement()
        level.skips = _BEFORE_TABLE if text == "," and level.lists else None

    def _word(self, text: str) -> None:
        word, level = text.upper(), self._levels[-1]
        if self._previous == ".":
            word = "name"
        elif self._opens(word):
            inserts = level.verb == "INSERT" and word == "SELECT"
            self._parts.append(text)
            self._levels[-1] = _Level(word, row_source=len(self._parts) if inserts else -1)
        elif level.start:
            self._first(word, text)
        elif level.defines and word in _OBJECTS:
            self._parts[-1] += f" {text}"
            level.defines, level.skips = False, _AFTER_OBJECT
        elif self._brings_table(word):
            level.skips, level.lists = _BEFORE_TABLE, word != "INTO"
            level.uses = level.uses and word in ("FROM", "INTO")  # after a JOIN it brings columns
        elif word == "VALUES" and self._previous == "(" and level.skips is not None:
            level.skips, level.lists, self._levels[-2].from_values = None, False, True
        elif level.skips is not None and word in _NO_NAMES:
            level.skips, level.lists = None, False
        elif level.skips is not None and word not in level.skips:
            self._name(text)
        elif word in _LIST_ENDS:
            level.lists = False
        elif word == "FOR":
            level.reads = False  # `FOR SYSTEM_TIME FROM …` brings a date
        self._previous = word

    def _opens(self, word: str) -> bool:
        """
        Return whether a word is an operation, and not a column, a function or part of another clause.
        """
        level, previous = self._levels[-1], self._previous
        if level.start and word in _VERBS:
            return True
        if word == "SELECT":
            return previous not in (",", "DENY", "GRANT", "REVOKE") and not (previous == "AS" and level.reads)
        return word in _VERBS and previous in ("(", ")", "AS") and level.verb != "(" and not level.reads

    def _first(self, word: str, text: str) -> None:
        """
        Take a statement's first word that is no verb, or a word between EXPLAIN and a verb.
        """
        level = self._levels[-1]
        if level.start == "any":
            level.start = "verb" if word in _PRECEDING else ""
            if word != "WITH" and text.isidentifier():
                self._parts.append(text)

    def _brings_table(self, word: str) -> bool:
        level, previous = self._levels[-1], self._previous
        return (
            (word == "FROM" and level.reads and previous != "DISTINCT")
            or (word in ("APPLY", "JOIN", "STRAIGHT_JOIN") and level.lists and previous != "FOR")
            or (word == "INTO" and level.verb in ("INSERT", "MERGE", "REPLACE", "SELECT"))
            or (word == "USING" and level.uses)
        )

    def _inside(self, level: _Level, before: str) -> _Level:
        level.start = ""
        # Only where a query can stand: arguments and columns can be named like verbs.
        inner = _Level("" if before in ("AS", "COPY", "MATERIALIZED") else "(")
        if level.skips is _BEFORE_TABLE:  # a subquery, or joined tables
            inner.skips, inner.lists = _BEFORE_TABLE, True
        return inner

    def _end_level(self) -> None:
        """
        Leave a level; the SELECT that numbers the rows of SQLAlchemy's insertmanyvalues is not listed.
        """
        level = self._levels.pop()
        if level.from_values and level.row_source == len(self._parts):
            self._parts.pop()

    def _end_statement(self) -> None:
        while self._levels:
            self._end_level()
        self._levels = [_Level(start="any")]
