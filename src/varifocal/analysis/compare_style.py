"""How the page of a comparison looks."""

STYLE = """
:root { --ink: #22272e; --faint: #6b7480; --line: #dfe3e8; --ground: #f6f7f9;
  --first: #2f6db5; --second: #b5611c; --right: #2e7d43; --wrong: #b93a32; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 4px; padding-top: 20px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 28px 0 12px; overflow-wrap: anywhere; }
h3::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 8px; background: var(--right); }
h3.lost::before { background: var(--wrong); }
.count { color: var(--faint); font-weight: normal; }
.first { color: var(--first); }
.second { color: var(--second); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; font-size: 13px; color: var(--faint); vertical-align: bottom;
  white-space: normal; max-width: 220px; overflow-wrap: break-word; }
tbody th { font-weight: 600; min-width: 64px; max-width: 340px; white-space: normal;
  overflow-wrap: break-word; }
td svg { display: block; }
small { color: var(--faint); }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--faint); }
.notes { margin: 10px 0; padding: 10px 14px 10px 30px; background: #fdf5e4; border-radius: 6px;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
article { background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.pictures { background: #fff; border-bottom: 1px solid var(--line); text-align: center;
  padding: 8px; }
.pictures img { max-width: 100%; height: auto; max-height: 220px; width: auto; margin: 0 2px; }
.text { padding: 12px 14px; display: flex; flex-direction: column; flex: 1; }
.question { margin: 0 0 8px; font-weight: 600; white-space: pre-line; overflow-wrap: anywhere; }
article ul { list-style: none; margin: 0; padding: 0; }
article li { display: flex; gap: 8px; align-items: baseline; padding: 3px 8px; border-radius: 5px;
  flex-wrap: wrap; }
article li span { flex: 1; min-width: 60%; overflow-wrap: anywhere; white-space: pre-line; }
article li b { color: var(--faint); }
article li.gold { background: #e2f1e6; box-shadow: inset 3px 0 var(--right); }
em { font-style: normal; font-size: 12px; padding: 0 7px; border-radius: 9px; color: #fff;
  max-width: 130px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
em.first { background: var(--first); color: #fff; }
em.second { background: var(--second); color: #fff; }
.about, .gone, .more, footer { color: var(--faint); font-size: 12.5px; overflow-wrap: anywhere; }
.about { margin: auto 0 0; padding-top: 10px; }
.gone { margin: 6px; }
@media (max-width: 620px) {
  main { padding: 20px 16px 32px; }
  th, td { padding: 5px 8px; }
  td small { display: block; }
  .cards { grid-template-columns: 1fr; }
}
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 12px; }
"""
