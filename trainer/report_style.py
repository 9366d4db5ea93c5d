"""The report's style: light and dark by what the reader's system asks for, nothing loaded."""

STYLE = """
:root{--ink:#1d2127;--soft:#5c6670;--line:#dfe3e8;--card:#fff;--page:#f5f6f8;--accent:#2f7de1}
@media (prefers-color-scheme:dark){
:root{--ink:#e6e9ed;--soft:#9aa5b1;--line:#323a44;--card:#1c2128;
--page:#12161b;--accent:#6ea8f2}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--page);
max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:0 0 .3rem}h3{font-size:1rem;margin:0}
p{margin:.35rem 0}.lead{font-size:1.15rem}small,.note,footer{color:var(--soft)}small{font-size:.8rem}
.note{font-size:.9rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem 1.4rem;
margin-top:1.25rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(7rem,1fr));gap:1rem}
.tiles div{display:flex;flex-direction:column}.tiles b{font-size:1.45rem;font-weight:650;white-space:nowrap}
.tiles span{font-size:.82rem;color:var(--soft)}
.figures{background:none;border:0;padding:0;display:grid;
grid-template-columns:repeat(auto-fit,minmax(min(27rem,100%),1fr));gap:1.25rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.1rem 1.25rem}
figure:last-child:nth-child(odd){grid-column:1/-1}
figcaption{margin-bottom:.6rem}.plot{width:100%;min-height:210px;color:var(--ink)}.plot .vega-embed{width:100%}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;margin-top:.6rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.45rem .6rem;border-top:1px solid var(--line);vertical-align:top;line-height:1.35}
tr:first-child th{border-top:0;font-weight:600;font-size:.9rem;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}
td.best{font-weight:650}td.best small{font-weight:400}
.dot{display:inline-block;width:.65rem;height:.65rem;border-radius:50%;margin-right:.4rem}
article{margin-top:1.1rem;padding-top:.9rem;border-top:1px solid var(--line)}
.prompt{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
.who{font-size:.78rem;color:var(--soft);margin-top:.5rem}
.tokens{font:14px/1.9 ui-monospace,SFMono-Regular,Menlo,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.tokens span{padding:.12rem 0;border-radius:3px;cursor:default}.tokens span:hover{outline:2px solid var(--accent)}
.key{display:inline-block;width:7rem;height:.75rem;border-radius:3px;vertical-align:middle;
background:linear-gradient(90deg,rgba(234,67,53,.5),transparent,rgba(52,168,83,.5))}
footer{margin-top:1.5rem;font-size:.85rem}
"""
