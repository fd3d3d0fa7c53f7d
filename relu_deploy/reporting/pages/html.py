"""The frame of every page: one self-contained file, no script, nothing loaded from elsewhere; readable on a phone and in print."""

from __future__ import annotations

from html import escape

__all__ = ["page"]

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d1d9e0;--paper:#fff;--panel:#f6f8fa;--bad:#b42318;--good:#1a7f37}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--paper:#0d1117;--panel:#151b23;--bad:#ff7b72;--good:#3fb950}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.6rem;margin:0 0 4px}h2{font-size:1.2rem;margin:40px 0 8px}
p{margin:8px 0;max-width:75ch}.soft{color:var(--soft);font-size:.92rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}th:nth-child(-n+3),td:nth-child(-n+3){text-align:left}.bad{color:var(--bad);font-weight:700}.good{color:var(--good)}
.charts{margin-top:14px;display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:16px}figure{margin:0;padding:12px;background:var(--panel);border:1px solid var(--line);border-radius:8px}
figcaption{font-size:.92rem;font-weight:600;margin-bottom:6px}svg{width:100%;height:auto;display:block}svg text{font:13px system-ui,sans-serif;fill:var(--ink)}
svg .name{text-anchor:end}svg .tick{text-anchor:middle;fill:var(--soft);font-size:11px}svg .unit{fill:var(--soft);font-size:11px}svg .grid{stroke:var(--line)}svg .whisker{stroke:var(--ink);fill:none;stroke-width:1.5}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.9rem}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.wide svg{min-width:640px}svg .soft{fill:var(--soft);font-size:11px}svg .guide{stroke:var(--soft);stroke-dasharray:5 4;fill:none}svg .limit{stroke:var(--bad);stroke-dasharray:2 3;fill:none}svg .fault{stroke:var(--bad);stroke-width:2}
.fault-box{border-left:4px solid var(--bad);background:var(--panel);padding:10px 14px;margin:14px 0}.fault-box p{margin:2px 0}code{font:.92em ui-monospace,monospace;overflow-wrap:anywhere}
figure.wide{margin-top:14px}.left td,.left th{text-align:left;white-space:normal}.left .whole{white-space:nowrap}
.curves figure{max-width:640px}.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.85rem;margin:6px 0 0}.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px}
@media print{figure{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
    """Return a whole HTML document.

    Args:
        title: Plain text.
        body: HTML, in which every text from elsewhere is escaped.
    """
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
