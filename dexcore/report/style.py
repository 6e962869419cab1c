"""The page's style: one column, phone width first, light and dark."""

CSS = """\
:root { --back: #ffffff; --text: #1c1f23; --quiet: #5d646d; --line: #dde0e4;
  --mark: #3a86c8; --warn: #b3382c; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e4e7eb; --quiet: #9aa2ac; --line: #30353c;
    --mark: #5aa2e0; --warn: #ee7d70; }
}
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 0; padding-top: 0.75rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.1rem; line-height: 1.3; margin: 2rem 0 0.5rem; }
p { margin: 0.5rem 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; margin: 1rem 0; font-size: 0.95rem; }
a { color: var(--mark); text-underline-offset: 0.2em; }
.quiet, figcaption { color: var(--quiet); font-size: 0.92rem; }
figcaption b { color: var(--text); }
.headline { border-left: 4px solid var(--mark); padding-left: 0.75rem; font-size: 1.05rem; }
.warning { border-left: 4px solid var(--warn); padding-left: 0.75rem; }
figure { margin: 0; }
img { display: block; width: 100%; max-width: 40rem; height: auto; margin: 0.75rem auto; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.25rem, 1fr)); gap: 0.5rem;
  margin: 0.25rem 0 1rem; }
.tile div { display: flex; gap: 2px; }
.tile img { margin: 0; width: 100%; min-width: 0; aspect-ratio: 1; object-fit: contain; background: #000; }
.tile figcaption { font-size: 0.82rem; line-height: 1.3; overflow-wrap: anywhere; }
.pair { grid-column: span 2; }
.three { grid-column: 1 / -1; max-width: 30rem; }
.wide { overflow-x: auto; }
.wide th:first-child { min-width: 6rem; }
.wide td, .wide th { padding-left: 0.7rem; }
.keys { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.92rem; }
.keys i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.35em; border-radius: 2px; }
table { border-collapse: collapse; width: 100%; margin: 0.75rem 0; font-size: 0.92rem; }
th, td { padding: 0.25rem 0 0.25rem 0.4rem; border-bottom: 1px solid var(--line); text-align: right;
  font-weight: 400; font-variant-numeric: tabular-nums; }
tbody th, th:first-child { padding-left: 0; text-align: left; }
tbody th, h3, .command { overflow-wrap: anywhere; }
td:nth-of-type(odd) { font-weight: 600; }
td:nth-of-type(even), thead th { color: var(--quiet); }
td { white-space: nowrap; }
details { margin: 2rem 0; border: 1px solid var(--line); border-radius: 6px; padding: 0 0.75rem; }
details[open] { padding-bottom: 0.75rem; }
summary { cursor: pointer; padding: 0.6rem 0; font-weight: 600; }
.found { color: var(--text); }
.detail { margin: 0.4rem 0 0; border: 0; padding: 0; }
.detail summary { padding: 0.3rem 0; font-weight: 400; color: var(--mark); }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: 0.75rem;
  font-size: 0.85rem; }
.command { white-space: pre-wrap; }
"""
