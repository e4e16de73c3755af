"""The style sheet of all pages: light and dark, for phones and wide screens."""

STYLE = """
:root {
  color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --grid: #dfe4e8; --page: #f4f6f8; --card: #ffffff;
  --mark: #fff4d6;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa6b1; --grid: #3a424a; --page: #14181c; --card: #1e2429; --mark: #3a3216; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere; }
h1 { margin: 8px 0 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 0 0 12px; font-size: 1.2rem; }
h3 { margin: 18px 0 8px; font-size: 1rem; }
h3 small { color: var(--soft); font-weight: normal; }
.names { margin: 4px 0 0; color: var(--soft); }
section, .notes { margin: 28px 0 0; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, max(190px, 23%)), 1fr)); gap: 10px; margin: 0;
}
.cards div, figure, .scroll, .notes, .pairs li {
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px;
}
.cards div { padding: 10px 12px; display: flex; flex-direction: column; justify-content: space-between; }
dt { color: var(--soft); font-size: .8rem; line-height: 1.3; }
dd { margin: 4px 0 0; font-size: 1rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.25; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 12px; }
@media (min-width: 1100px) { .grid.four { grid-template-columns: repeat(4, 1fr); } }
.grid.maps { grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); margin: 12px 0 0; }
.maps figure > svg { max-height: 560px; }
figure { margin: 0; padding: 10px 10px 6px; min-width: 0; }
figcaption {
  font-weight: 600; font-size: .9rem; margin-bottom: 4px; display: flex; flex-wrap: wrap; gap: 0 12px;
  justify-content: space-between;
}
figure > svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0; padding: 0; font-size: .85rem;
  font-weight: normal;
}
section > .legend { margin: 0 0 10px; }
.legend svg { width: 26px; height: 10px; margin-right: 6px; }
.scroll { overflow-x: auto; width: fit-content; min-width: min(100%, 620px); max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 6px 10px; text-align: left; vertical-align: top; border-top: 1px solid var(--grid); min-width: 5.5em;
}
thead th { color: var(--soft); border-top: 0; }
tbody th { font-weight: normal; color: var(--soft); overflow-wrap: break-word; }
table:not(:has(thead)) tr:first-child > * { border-top: 0; }
details { margin: 12px 0 0; }
summary { cursor: pointer; padding: 4px 0; font-weight: 600; font-size: .95rem; }
.pairs {
  list-style: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 8px; margin: 0;
  padding: 0;
}
.pairs li { padding: 6px; min-width: 0; font-size: .8rem; line-height: 1.3; }
.pairs div { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; margin-bottom: 4px; }
.pairs img { width: 100%; height: auto; display: block; border-radius: 3px; }
.pairs img.small { image-rendering: pixelated; }
.pairs b { margin-right: 6px; font-variant-numeric: tabular-nums; }
.pairs span { color: var(--soft); }
.notes { padding: 12px 14px; background: var(--mark); }
.notes h2 { font-size: 1rem; margin: 0 0 4px; }
.notes ul { margin: 0; padding-left: 20px; font-size: .9rem; }
.missing { color: var(--soft); font-size: .9rem; margin: 10px 0 0; }
footer { margin: 32px 0 8px; color: var(--soft); font-size: .8rem; }
"""
