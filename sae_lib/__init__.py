"""Monosemanticity at Home: from text to readable features of a language model's MLP."""

import sys

# jsonschema, which plotly and papermill bring, would compile a grammar of web addresses in over a
# second at import, for a check that nothing here makes; None stands for "not installed".
sys.modules.setdefault("rfc3987_syntax", None)
