"""
Read SQL text once, for its summary and for the text without its literals.

Source: OpenTelemetry semantic conventions v1.44, `db.query.summary` and the sanitization of `db.query.text`.
One loop goes over the tokens of one regular expression; each token is masked or copied, and moves a small state
machine that picks out operations and targets. In doubt more is masked: where systems disagree about the end of
a string or comment, the rest of the text goes.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

READ_LIMIT: Final = 16_384
"""Characters of a text that are read; a bulk INSERT can have megabytes, and nobody displays them."""

SUMMARY_LIMIT: Final = 255
"""Characters of a summary, by the convention."""


class SQLReading(NamedTuple):
    """
    What one pass over a text found.

    Attributes:
        summary: `db.query.summary`; empty when the text has no operation.
        operation: The first operation as written, such as `SELECT` or `CREATE TABLE`; empty when there is none.
        masked: The text with `?` for each literal, and without comments.
    """

    summary: str
    operation: str
    masked: str


def read_sql(sql: str, system: str = "other_sql") -> SQLReading:
    """
    Summarise and mask a text in one pass.

    Args:
        sql: Any text; only its first `READ_LIMIT` characters are read.
        system: The `db.system.name`; an unknown one gets the rules that mask most.
    """
    dialect = _DIALECTS.get(system, _UNKNOWN)
    text, is_cut = sql[:READ_LIMIT], len(sql) > READ_LIMIT
    summary, masked, end = _Summary(), list[str](), 0
    while token := dialect.token.match(text, end):
        start, end = token.span()
        if token.lastgroup == "block":
            end = _comment_end(text, start, dialect.nests)
        elif is_cut and end == len(text):  # maybe half a token: neither its kind nor its end is known
            masked.append("?")
        elif token.lastgroup != "line":
            masked.append(_mask(token, summary))
    parts = summary.finish()
    return SQLReading(" ".join(parts), parts[0] if parts else "", "".join(masked))


def _mask(token: re.Match[str], summary: _Summary) -> str:
    """Show the token to the summary, and return what the masked text has in its place."""
    kind, text = token.lastgroup, token[0]
    if kind == "space":
        return text
    if kind == "name" and text.upper() not in ("TRUE", "FALSE"):
        summary.word(token)
    elif kind == "maybe" and summary.wants_name():
        summary.name(text)
    elif kind in ("mark", "other"):
        summary.character(text)
    else:
        summary.literal(text)
        return "?"
    return text


def _comment_end(text: str, start: int, nests: bool) -> int:
    """
    Return the end of the block comment that starts at `start`.

    Where comments may not nest, the text after an inner end can be code, and a quote in it turns all that follows
    inside out; so does a quote in MySQL's `/*! … */`, whose content is code. Then the rest is dropped.
    """
    depth = 0
    code = start if text.startswith(("/*!", "/*M!"), start) else len(text)
    for edge in _COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        if edge[0] == "*/":
            code = min(code, edge.start())
        if depth == 0:
            is_doubtful = not nests and _CODE_QUOTE.search(text, code, edge.start())
            return len(text) if is_doubtful else edge.end()
    return len(text)


_COMMENT_EDGE = re.compile(r"/\*|\*/")
_CODE_QUOTE = re.compile(r"['\"`$#-]")


# --- The tokens of each system. No alternative can fail after a long match (an open string matches up to the end),
# --- or the token that then matches takes up what was looked at; so matching is linear.


class _Dialect(NamedTuple):
    token: re.Pattern[str]
    nests: bool


_BACKSLASH = {  # rule -> (a backslash inside a string, how a string ends that no quote closes)
    "plain": (r"\\", r"\Z"),
    "escape": (r"\\.", r"\\?\Z"),
    "doubt": (r"\\[^{0}]", r"\\{0}.*|\\?\Z"),  # a backslash before a quote: everything to the end
}


def _string(quote: str, rule: str) -> str:
    """Return the pattern of a string literal, closed or not."""
    inner, end = (pattern.format(quote) for pattern in _BACKSLASH[rule])
    return rf"{quote}[^{quote}\\]*(?:(?:{quote}{quote}|{inner})[^{quote}\\]*)*(?:{quote}|{end})"


def _closed(left: str, right: str, never: str = "") -> str:
    """Return the pattern of a quoted identifier, closed and without the characters `never`."""
    return rf"{left}[^{right}{never}]*(?:{right}{right}[^{right}{never}]*)*{right}(?!{right})"


# A lone CR ends the comment in PostgreSQL and in few others: the rest goes.
_TO_LINE_END = r"[^\r\n]*(?:\r(?!\n).*)?"
_DASHES = "--" + _TO_LINE_END
_MYSQL_COMMENT = r"(?:\#|--(?=[\x00-\x20\x7f]|\Z))" + _TO_LINE_END  # `5--1` is arithmetic there
# Not a comment everywhere; harmless unless something opens in it that a later line closes.
_DOUBTFUL_COMMENT = rf"(?:\#|--(?=\S))[^\n'\"`$/]*['\"`$/].*|(?:\#|--){_TO_LINE_END}"

_WORD = r"[^\W\d][\w$]*"
_HASH_WORD = r"\#{0,2}[^\W\d][\w$#]*"
_DOLLAR_QUOTE = r"(?P<tag>\$(?:[^\W\d]\w*)?\$).*?(?:(?P=tag)|\Z)"
_ORACLE_QUOTE = (
    r"[nN]?[qQ]'(?:\[.*?(?:\]'|\Z)|\{.*?(?:\}'|\Z)|\(.*?(?:\)'|\Z)|<.*?(?:>'|\Z)|(?P<q>.).*?(?:(?P=q)'|\Z)|\Z)"
)
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\w*"
_MARK = r"\?|%s\b|%\([^\W\d]\w*\)s\b|::|:[^\W\d]\w*|@{1,2}[^\W\d][\w$#@]*"
_DOLLAR_MARK = r"|\$(?:\d+|[^\W\d]\w*)"
_NUMBERED_MARK = r"|[?:]\d+"  # elsewhere `:2` can be the end of an array slice


def _dialect(
    *,
    strings: str = "plain",
    e_strings: str = "",
    quotes_are_names: bool = True,
    comment: str = _DASHES,
    word: str = _WORD,
    marks: str = _MARK + _DOLLAR_MARK,
    brackets: bool = False,
    nests: bool = False,
) -> _Dialect:
    """Put together one system's tokens."""
    names = [word, _closed("`", "`")] + ([_closed(r"\[", r"\]")] if brackets else [])
    double = _closed('"', '"') if quotes_are_names else _closed('"', '"', r"\\")
    later = "|".join([*names, double])
    first = "|".join([*names, double if quotes_are_names else double + r"(?=\.(?!\d))"])
    unclosed = '"`' + (r"\[" if brackets else "")
    kinds = {
        "space": r"\s+",
        "line": comment,
        "block": r"/\*",
        "literal": "|".join(
            [
                _ORACLE_QUOTE,
                "[eE]" + _string("'", e_strings or strings),
                "(?:[xXbBnN]|[uU]&)?" + _string("'", strings),
                _DOLLAR_QUOTE,
                _NUMBER,
            ]
        ),
        "mark": marks,
        "name": rf"(?:{first})(?:\s*\.{{1,2}}\s*(?:{later}))*",
        "maybe": double,
        "open": ("" if quotes_are_names else _string('"', strings) + "|") + f"[{unclosed}].*",
        "other": ".",
    }
    pattern = "|".join(f"(?P<{kind}>{alternatives})" for kind, alternatives in kinds.items())
    return _Dialect(re.compile(pattern, re.DOTALL), nests)


_MYSQL = _dialect(strings="escape", quotes_are_names=False, comment=_MYSQL_COMMENT)
_UNKNOWN = _dialect(strings="doubt", quotes_are_names=False, comment=_DOUBTFUL_COMMENT)
_DIALECTS = {
    # `standard_conforming_strings` is a setting that the text does not show, and a leak is worse than a lost tail.
    "postgresql": _dialect(strings="doubt", e_strings="escape", nests=True),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlite": _dialect(quotes_are_names=False, marks=_MARK + _DOLLAR_MARK + _NUMBERED_MARK, brackets=True),
    # `$12.34` is money there.
    "microsoft.sql_server": _dialect(word=_HASH_WORD, marks=_MARK, brackets=True, nests=True),
    "oracle.db": _dialect(word=_HASH_WORD, marks=_MARK + _DOLLAR_MARK + _NUMBERED_MARK),
}


# --- The summary.

_READING = frozenset({"DELETE", "SELECT", "UPDATE"})  # FROM belongs to these
_DEFINING = frozenset({"ALTER", "CREATE", "DROP"})
_RUNNING = frozenset({"CALL", "EXEC", "EXECUTE"})
_WRITING = frozenset({"INSERT", "MERGE", "REPLACE", "TRUNCATE"})
_NAMING = _RUNNING | _WRITING | {"COPY", "DELETE", "UPDATE"}  # a name comes next
_VERBS = _NAMING | _DEFINING | {"SELECT"}
_PRECEDING = frozenset({"BEGIN", "DESC", "DESCRIBE", "EXPLAIN"})  # another statement can follow
_NO_SELECT_AFTER = frozenset({".", ",", "DENY", "GRANT", "REVOKE"})
_JOINS = frozenset({"APPLY", "JOIN", "STRAIGHT_JOIN"})
_LIST_ENDS = frozenset(
    "CONNECT EXCEPT FETCH GROUP HAVING INTERSECT LIMIT MINUS OFFSET OPTION ORDER OUTPUT QUALIFY RETURNING SET SHARE "
    "START UNION UPDATE VALUES WHERE WINDOW".split()
)
_OBJECTS = frozenset(
    "AGGREGATE COLLATION DATABASE DOMAIN EVENT EXTENSION FUNCTION INDEX LANGUAGE LOGIN OPERATOR PACKAGE POLICY "
    "PROCEDURE PUBLICATION ROLE RULE SCHEMA SEQUENCE SERVER STATISTICS SUBSCRIPTION SYNONYM TABLE TABLESPACE "
    "TRIGGER TYPE USER VIEW".split()
)

# Words that may stand between a keyword and its name.
_BEFORE_TABLE = frozenset({"LATERAL", "ONLY"})
_AFTER_VERB = _BEFORE_TABLE | frozenset(
    "ABORT ALL DELAYED FAIL FIRST FUNCTION HIGH_PRIORITY IGNORE LOW_PRIORITY OR PROCEDURE QUICK REPLACE ROLLBACK "
    "TABLE".split()
)
_AFTER_OBJECT = _BEFORE_TABLE | {"AUTHORIZATION", "BODY", "CONCURRENTLY", "EXISTS", "IF", "NOT", "ON"}
_NOT_A_NAME = frozenset({"DUMPFILE", "IMMEDIATE", "OUTFILE"})  # a string follows

_NAME_AHEAD = re.compile(r"\s+[\w\"`\[#]|\s*/\*")
_STRING_AS_NAME = re.compile(r"'[^\W\d]\w*'")
_OUTER_BLANK = re.compile(r"(\"[^\"]*\"|`[^`]*`|\[[^\]]*\])|\s+")
_NO_TARGET = re.compile(r";|--|[/\\]")


class _Level:
    """What one level of parentheses is reading."""

    def __init__(self, verb: str = "", *, start: str = "") -> None:
        self.verb = verb
        self.start = start  # which words start a statement now: "any", "verb" or none
        self.skips = _AFTER_VERB if verb in _NAMING else None  # words to skip before a name; None: no name comes
        self.lists = verb in ("TRUNCATE", "UPDATE")  # a comma or JOIN brings the next table
        self.reads = verb in _READING
        self.uses = verb in ("DELETE", "MERGE")  # USING brings a table
        self.defines = verb in _DEFINING  # the object's type is still to come
        self.row_source = -1  # length of the summary after the SELECT of an INSERT …
        self.from_values = False  # … and whether that reads a VALUES list


class _Summary:
    """Collect operations and targets from the tokens shown."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._levels = [_Level(start="any")]
        self._previous = ""  # the last word, in capitals, or the last other character

    def finish(self) -> list[str]:
        """Return the operations and targets that fit."""
        self._end_statement()
        length = -1
        for count, part in enumerate(self._parts):
            length += 1 + len(part)
            if length > SUMMARY_LIMIT:
                return self._parts[:count]
        return self._parts

    def wants_name(self) -> bool:
        """Return whether only a name can stand here."""
        return self._levels[-1].skips is not None or self._previous == "."

    def name(self, text: str) -> None:
        """Take a name that cannot be a keyword."""
        level = self._levels[-1]
        if level.skips is not None:
            level.skips = None
            name = _OUTER_BLANK.sub(r"\1", text)
            if name.isprintable() and re.search(r"\w", name) and not _NO_TARGET.search(name):
                self._parts.append(name)
        self._previous = "name"

    def literal(self, text: str) -> None:
        """Take a literal; SQLite and MySQL let a table in FROM be quoted like a string."""
        level = self._levels[-1]
        if level.verb == "SELECT" and level.lists and _STRING_AS_NAME.fullmatch(text):
            self.name(text)
        self.character("?")

    def character(self, text: str) -> None:
        """Take punctuation or a placeholder."""
        level = self._levels[-1]
        if text == "(":
            self._levels.append(self._inside(level))
        elif text == ")" and len(self._levels) > 1:
            self._end_level()
        elif text == ";":
            self._end_statement()
        self._levels[-1 - (text == "(")].skips = _BEFORE_TABLE if text == "," and level.lists else None
        self._previous = text

    def word(self, token: re.Match[str]) -> None:
        """Take a word or a name."""
        text = token[0]
        word, level = text.upper(), self._levels[-1]
        if self._opens(word, token):
            self._open(word, text)
        elif level.start:
            self._first(word, text)
        elif level.defines:
            self._define(word, text)
        elif not self._source(word):
            self._plain(word, text)
        self._previous = word

    def _opens(self, word: str, token: re.Match[str]) -> bool:
        """Return whether a word is an operation, and not a column, a function or a part of another clause."""
        level = self._levels[-1]
        if word not in _VERBS or self._previous == ".":
            return False
        if level.start:
            return True
        if word == "SELECT":
            return self._previous not in _NO_SELECT_AFTER and not (self._previous == "AS" and level.reads)
        if word in _DEFINING or word == "COPY" or not _NAME_AHEAD.match(token.string, token.end()):
            return False
        return level.verb == "" if self._previous == "(" else self._previous in (")", "AS") and not level.reads

    def _open(self, word: str, text: str) -> None:
        is_row_source = word == "SELECT" and self._levels[-1].verb in ("INSERT", "REPLACE")
        self._parts.append(text)
        self._levels[-1] = _Level(word)
        if is_row_source:
            self._levels[-1].row_source = len(self._parts)

    def _first(self, word: str, text: str) -> None:
        """Take the first word of a statement that is none of the verbs, or a word after EXPLAIN."""
        level = self._levels[-1]
        if level.start == "any" and text.isidentifier() and word != "WITH":
            self._parts.append(text)
            level.verb = word
        if level.start == "any" or word == "WITH":
            level.start = "verb" if word in _PRECEDING else ""

    def _define(self, word: str, text: str) -> None:
        """Take a word after CREATE, ALTER or DROP: the object's type, or one to skip."""
        if word in _OBJECTS:
            self._parts[-1] += f" {text}"
            self._levels[-1].defines = False
            self._levels[-1].skips = _AFTER_OBJECT

    def _source(self, word: str) -> bool:
        """Take a keyword that brings a table; return False for all other words."""
        level = self._levels[-1]
        if not (
            (word == "FROM" and level.reads and self._previous != "DISTINCT")
            or (word in _JOINS and level.lists and self._previous != "FOR")
            or (word == "INTO" and level.verb in _WRITING | {"SELECT"})
            or (word == "USING" and level.uses)
        ):
            return False
        level.skips = _BEFORE_TABLE
        level.lists = word != "INTO"
        level.uses = level.uses and word in ("FROM", "INTO")  # after a JOIN it brings columns
        return True

    def _plain(self, word: str, text: str) -> None:
        """Take a word that is a name, a clause or nothing of interest."""
        level = self._levels[-1]
        if word == "VALUES" and self._previous == "(" and level.skips is not None:
            self._levels[-2].from_values = True
            level.skips, level.lists = None, False
        elif word in _NOT_A_NAME:
            level.skips = None
        elif level.skips is not None and word not in level.skips:
            self.name(text)
        elif word in _LIST_ENDS:
            level.lists = False
        elif word == "FOR":
            level.reads = False  # `FOR SYSTEM_TIME FROM …` brings a date

    def _inside(self, level: _Level) -> _Level:
        """Return the level that an opening parenthesis starts."""
        level.defines = False
        level.start = "" if level.start == "any" else level.start
        if level.verb in _DEFINING or level.verb == "columns":
            return _Level("columns")
        inner = _Level()
        if level.skips is not None:  # a subquery, or joined tables
            inner.skips, inner.lists = _BEFORE_TABLE, True
        return inner

    def _end_level(self) -> None:
        """Leave a level; the SELECT by which SQLAlchemy numbers an INSERT's rows (insertmanyvalues) is not the user's."""
        level = self._levels.pop()
        if level.from_values and level.row_source == len(self._parts):
            self._parts.pop()

    def _end_statement(self) -> None:
        while self._levels:
            self._end_level()
        self._levels = [_Level(start="any")]
