"""The style of the page, for light and dark, wide and narrow, screen and paper."""

STYLE = """
:root{color-scheme:light dark;--bg:#fafaf8;--card:#fff;--ink:#1d2026;--soft:#575d68;--line:#d9dbd6;--track:#ecece8;
--link:#0b57c2;--right:#0a6b3d;--wrong:#a8321a;--gold:#fdf0c4;--cite:#dcebff}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e8eaed;--soft:#a6adb8;--line:#363b44;
--track:#2a2e36;--link:#8ab8ff;--right:#5fd39b;--wrong:#ff9a80;--gold:#4b3f10;--cite:#1d3a5f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:1264px;margin:auto;padding:0 20px}
h1{font-size:clamp(1.5rem,1.1rem + 1.8vw,2.2rem);line-height:1.2;margin:1.4em 0 .5em;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;margin:2.4em 0 .5em;padding-top:.7em;border-top:1px solid var(--line)}
h3,h4{font-size:1rem;margin:0}
p{max-width:80ch;margin:.6em 0}
small{font-size:.8em;color:var(--soft);font-weight:400}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
nav{display:flex;flex-wrap:wrap;gap:.2em 1.3em;margin:1em 0}
nav a{padding:.25em 0}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.scroll{overflow-x:auto;position:relative;margin:1em 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.94rem}
.results,.comparisons{width:100%;background:var(--card)}
th,td{text-align:left;vertical-align:top;padding:.55em .8em;border-bottom:1px solid var(--line)}
thead th{font-size:.82rem;color:var(--soft);font-weight:600;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:600;min-width:11em;line-height:1.35;overflow-wrap:anywhere}
.results tbody th,.comparisons tbody th,.results thead th:first-child,.comparisons thead th:first-child{position:sticky;
left:0;z-index:1;background:var(--card)}
tbody th .key{float:left;margin:.18em 0 0 -.1em}
tbody th .key+span{display:block;margin-left:1.4em}
th small,td small{display:block}
.results td{min-width:6.6em}
td small{white-space:nowrap}
.aside th,.aside td{color:var(--soft);font-weight:400}
.key{width:.95em;height:.95em;flex:none;fill:var(--c);vertical-align:-.1em;margin-right:.4em;overflow:visible}
.bar{display:block;width:100%;min-width:4.5em;height:14px;margin-top:1px;overflow:visible}
.bar rect{fill:var(--c)}
.bar .track{fill:var(--track)}
.bar path{fill:none;stroke:var(--ink);stroke-width:1.4;vector-effect:non-scaling-stroke}
.facts{display:flex;flex-wrap:wrap;gap:.5em 2.2em;margin:1em 0}
.facts dt{font-size:.82rem;color:var(--soft)}
.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
code{font-size:.9em}
.meanings{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:.6em 1.6em;margin:1.2em 0;
font-size:.9rem}
.meanings dt{font-weight:600}
.meanings dd{margin:0;color:var(--soft)}
.switches{border:1px solid var(--line);border-radius:8px;background:var(--card);display:flex;flex-wrap:wrap;
gap:.2em 1.3em;padding:.3em 1em .6em;margin:1em 0}
.switches legend{font-size:.82rem;color:var(--soft);padding:0 .4em}
.switches label{display:inline-flex;align-items:center;padding:.2em 0;font-size:.92rem}
.switches input{accent-color:var(--link);width:1.05em;height:1.05em;margin:0 .5em 0 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:18px;
align-items:start}
figure{margin:0;padding:14px 14px 8px;background:var(--card);border:1px solid var(--line);border-radius:8px;
min-width:0}
figcaption p{font-size:.85rem;line-height:1.45;color:var(--soft);margin:.2em 0 .6em}
figure table{font-size:.82rem}
figure tbody th{min-width:0}
.planes>figure:only-child,.charts.many>figure:only-child{grid-column:1/-1;max-width:800px}
figure th,figure td{padding:.3em .5em}
@media(min-width:780px){.charts figcaption{min-height:5.9rem}.many figcaption{min-height:4.4rem}}
.plot{width:100%;height:auto;font-size:11.5px;fill:var(--ink)}
.plot .tick,.plot .unit{fill:var(--soft)}
.rule{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1;fill:none}
.series polyline{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.series .dashed{stroke-width:1.5;stroke-dasharray:5 4}
.reference{--c:var(--soft)}
.mark path{fill:var(--c);stroke:var(--card);stroke-width:.8}
.mark circle{fill:transparent}
.mark:hover path{stroke:var(--ink);stroke-width:1.6}
.leader{stroke:var(--c);stroke-width:1;fill:none}
.name{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.band{opacity:0;pointer-events:none}
.series:hover .band,section:has(.intervals:checked) .band{opacity:1}
.band polygon{fill:var(--c);fill-opacity:.1}
.band path{fill:none;stroke:var(--c);stroke-width:1.2}
.hollow .mark path,.key.hollow path{fill:var(--card);stroke:var(--c);stroke-width:1.7}
.bar.hollow rect:not(.track){fill-opacity:.5;stroke:var(--c);stroke-width:1;vector-effect:non-scaling-stroke}
.ceiling{--c:var(--soft)}
.ceiling .band{display:none}
.ceiling .dashed{stroke-dasharray:1.5 4;stroke-linecap:round}
.ceiling-candidates .dashed{stroke-dasharray:6 3 1.5 3}
.planes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,470px),1fr));gap:18px}
.cross{fill:none;stroke:var(--c);stroke-width:1.2;opacity:.55}
.quarter{fill:var(--soft);font-style:italic}
.planes figure{overflow-x:auto}
.planes .plot{min-width:430px}
.charts.many{grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr))}
.comparisons td,.ranking td{white-space:nowrap}
@media(min-width:780px){.ranking tbody th{white-space:nowrap}}
.comparisons td:nth-child(2){white-space:normal}
section>details{margin:.6em 0}
section>details>summary{font-weight:600}
section>h3{margin:1.4em 0 .4em}
.change{color:var(--ink)}
.narrow{width:auto;min-width:min(100%,36em)}
.candidates,.said{font-size:.88rem;width:100%}
.candidates th,.candidates td,.said th,.said td,.groups th,.groups td{padding:.35em .6em}
.candidates tbody th{min-width:0}
.candidates td:nth-child(2){min-width:15em}
.candidates td:nth-child(2) small{display:inline}
.candidates p{font-size:.95em;margin:.3em 0}
.said td:nth-child(2){min-width:12em;overflow-wrap:anywhere}
.ranking tbody th{min-width:13em}
.groups{font-size:.85rem}
.groups tbody th{min-width:0;overflow-wrap:anywhere}
.chip{display:inline-block;color:var(--ink);font-size:.88rem;
min-width:1.7em;text-align:center;border:1px solid var(--line);border-radius:4px;
padding:0 .35em;background:var(--card)}
.chip.gold{color:var(--ink);font-size:.88rem;background:var(--gold)}
.chip.cited{border:2px solid var(--link)}
summary{cursor:pointer;padding:.2em 0}
figure summary{font-size:.85rem;color:var(--soft)}
.sample{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5em 1em;margin:.7em 0}
.question{font-weight:600;overflow-wrap:anywhere}
.strip{display:inline-flex;flex-wrap:wrap;gap:.1em .9em;margin-left:1em}
.pair,.whole{white-space:nowrap}
.right{color:var(--right);font-weight:700}
.wrong{color:var(--wrong);font-weight:700}
.not{color:var(--soft);font-weight:700}
.gold{font-size:.85rem;color:var(--soft)}
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr));gap:12px;margin:.8em 0}
article{border:1px solid var(--line);border-radius:6px;padding:.6em .8em;min-width:0;overflow-wrap:anywhere}
article h4{font-size:.9rem;font-weight:600;line-height:1.35}
article p{margin:.35em 0;line-height:1.4}
.text{font-size:1.05rem}
article ol{margin:.3em 0;padding-left:1.3em;font-size:.88rem}
.badge{font-size:.72rem;border-radius:4px;padding:.1em .45em;color:var(--ink)}
.badge.gold{background:var(--gold)}
.badge.cited{background:var(--cite)}
.settings td{overflow-wrap:anywhere}
@media(max-width:600px){header,main{padding:0 14px}.results tbody th,.comparisons tbody th{min-width:8.6em;
max-width:9em;font-size:.84rem}th,td{padding:.5em .6em}.strip{display:flex;margin:.3em 0 0}
figure{padding:12px 8px 6px}}
"""
