#!/usr/bin/env bash
# Jinja2 3.1.6 reads \uXXXX in a string literal as Python's unicode_escape does, not as JSON does:
# an escaped character beyond U+FFFF, which json.dumps writes as a pair, becomes two halves of a
# character. Whoever writes a text into a template (a chat template's system prompt) with
# json.dumps gets a rendering that cannot be encoded:
#
#   escaped    ['0xd83e', '0xddf2']  encodes: False
#   unescaped  ['0x1f9f2']           encodes: True
#
# json.dumps(text, ensure_ascii=False) is right. (Jinja's own `tojson` filter escapes in the same
# way, but what it writes is output, not a literal.) Exits 1 if Jinja's behaviour changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6
"$folder/venv/bin/python" - <<'PYTHON'
import json

import jinja2


def render(literal: str) -> str:
    return jinja2.Template("{{ " + literal + " }}").render()


def encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


magnet = "\N{MAGNET}"
escaped, unescaped = render(json.dumps(magnet)), render(json.dumps(magnet, ensure_ascii=False))
for name, text in (("escaped", escaped), ("unescaped", unescaped)):
    print(f"{name:10} {[hex(ord(one)) for one in text]}  encodes: {encodes(text)}")
assert [hex(ord(one)) for one in escaped] == ["0xd83e", "0xddf2"]
assert not encodes(escaped)
assert unescaped == magnet
PYTHON
