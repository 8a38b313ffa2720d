"""How the page looks: one style sheet for light and dark, wide and narrow. Nothing in it is fetched."""

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#20242b"/>'
    '<path fill="#f9c75f" d="M6 6h6v6H6z"/><path fill="#f0736a" d="M13 6h6v6h-6zM6 13h6v6H6z"/>'
    '<path fill="#c0489b" d="M20 6h6v6h-6zM13 13h6v6h-6z"/><path fill="#7a4bc4" d="M20 13h6v6h-6zM13 20h6v6h-6z"/>'
    '<path fill="#4a63d8" d="M20 20h6v6h-6zM6 20h6v6H6z"/></svg>'
)

STYLE = """
:root { --paper: #f4f4f1; --card: #ffffff; --ink: #1d2126; --quiet: #646b75; --line: #dcdcd6; --well: #ecece7;
        --accent: #4a55c7; --alarm: #a12d1f; --alarm-paper: #fdecea; }
body.body--dark { --paper: #14161a; --card: #1d2025; --ink: #eceef1; --quiet: #9aa2ad; --line: #31363e; --well: #272b32;
        --accent: #98a2ff; --alarm: #ffb4a8; --alarm-paper: #3a1f1c; }
body { background: var(--paper); color: var(--ink); font-family: system-ui, "Segoe UI", Roboto, sans-serif; }
.nicegui-content { padding: 0; gap: 0; align-items: stretch; max-width: 1400px; margin: 0 auto; }
.board { padding: 20px 28px 48px; display: flex; flex-direction: column; gap: 18px; width: 100%; }
.top { display: flex; align-items: center; gap: 14px; flex-wrap: wrap; }
.top h1 { font-size: 22px; line-height: 1.2; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.model { display: flex; gap: 6px 10px; flex-wrap: wrap; align-items: baseline; color: var(--quiet); font-size: 14px; }
.model b { color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.push { margin-left: auto; }

.drop { border: 1.5px dashed var(--quiet); border-radius: 14px; background: var(--card); width: 100%;
        display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 4px;
        padding: 44px 24px; text-align: center; cursor: pointer; color: var(--ink); font: inherit;
        transition: border-color .15s; }
.drop.small { padding: 14px 24px; }
.drop:hover, .drop:focus-visible, body.dragging .drop { border-color: var(--accent); outline: none; }
body.dragging .drop { background: color-mix(in srgb, var(--accent) 10%, var(--card)); }
.drop .big { font-size: 17px; font-weight: 600; }
.drop.small .big { font-size: 15px; }
.hint { color: var(--quiet); font-size: 13px; line-height: 1.45; }
.uploader { display: none; }
.intro { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 16px; }
.intro p { margin: 6px 0 0; }

.alarm { display: flex; align-items: center; gap: 12px; padding: 9px 8px 9px 16px; border-radius: 10px; width: 100%;
         background: var(--alarm-paper); color: var(--alarm); font-size: 14px; overflow-wrap: anywhere; }
.alarms { display: flex; flex-direction: column; gap: 8px; width: 100%; }
.alarms:empty { display: none; }
.alarm .q-btn { margin-left: auto; flex: none; }

.panel { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px 18px; width: 100%; }
.tools { display: flex; flex-wrap: wrap; align-items: center; gap: 10px 26px; font-size: 14px; }
.tools .q-field { min-width: 150px; }
.legend { display: flex; align-items: center; gap: 8px; font-size: 13px; color: var(--quiet);
          font-variant-numeric: tabular-nums; }
.legend i { width: 120px; height: 10px; border-radius: 5px; display: block; }

.chosen { display: flex; gap: 16px 24px; align-items: flex-start; flex-wrap: wrap; }
.intro h2, .chosen h2, .card h2 { font-size: 15px; line-height: 1.3; font-weight: 600; margin: 0;
                                  overflow-wrap: anywhere; }
.matches { display: flex; gap: 12px; overflow-x: auto; padding-bottom: 4px; flex: 1 1 320px; min-width: 0; }
.match { display: flex; flex-direction: column; gap: 2px; width: 96px; flex: none; font-size: 12px;
         color: var(--quiet); }
.match img { width: 96px; height: 96px; border-radius: 8px; object-fit: cover; display: block; }
.match b { color: var(--ink); font-size: 14px; font-variant-numeric: tabular-nums; }
.match span, .match div { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.match.self img { outline: 2px solid var(--accent); outline-offset: 2px; }

.head { display: flex; align-items: center; gap: 10px; margin-bottom: 10px; }
.head .hint { flex: none; }
.head .q-btn { margin-left: auto; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 16px; }
@media (max-width: 1000px) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .board { padding: 16px 18px 40px; }
}
@media (max-width: 460px) { .tiles { grid-template-columns: minmax(0, 1fr); } }
.tile { display: flex; flex-direction: column; gap: 7px; min-width: 0; }
.tile .name { font-size: 13px; color: var(--quiet); font-variant-numeric: tabular-nums; }
.tile .name b { color: var(--ink); font-weight: 600; }
.stage { position: relative; border-radius: 8px; overflow: hidden; background: var(--well); cursor: crosshair; }
.stage:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.stage img { position: absolute; inset: 0; width: 100%; height: 100%; display: block; user-select: none;
             -webkit-user-drag: none; }
.stage .patches { image-rendering: pixelated; }
.stage .under { filter: grayscale(1); }
.mark { position: absolute; pointer-events: none; box-sizing: border-box; transform: translate(-50%, -50%);
        min-width: 14px; min-height: 14px; border: 2px solid #fff; box-shadow: 0 0 0 1.5px #000, inset 0 0 0 1px #000; }
.mark.ring { border-radius: 50%; min-width: 20px; min-height: 20px; aspect-ratio: 1; }
.none { padding: 16px; font-size: 13px; color: var(--quiet); background: var(--well); border-radius: 8px; }
"""
