"use strict";
// Sorts tables and draws the figures that the page holds as data; plotly's script is in the page too, deflated.
(() => {
  const root = document.documentElement;

  // ---- tables
  const order = (cell) => {
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text.replaceAll(",", ""))) ? Number(text.replaceAll(",", "")) : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return typeof a === "number" ? -1 : 1;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const note = document.createElement("p");
    note.className = "muted screen";
    note.textContent = "Click a column's name to sort by it.";
    if (table.tBodies[0].rows.length > 1) table.parentElement.before(note);
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      head.title = "sort";
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [order(row.cells[column]), row]);
        const last = rows.filter(([key]) => key === ""); // what has no value stays below
        const rest = rows.filter(([key]) => key !== "").sort((a, b) => compare(a[0], b[0]) * (down ? -1 : 1));
        table.tBodies[0].append(...[...rest, ...last].map(([, row]) => row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }

  // ---- figures
  const source = document.getElementById("figures");
  const packed = document.getElementById("plotly");
  if (!source || !packed) { root.dataset.drawn = "0"; return; }
  const figures = JSON.parse(source.textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hovers = matchMedia("(hover: hover)").matches; // else the buttons would lie over the figure for good
  let printing = false;
  const LIGHTER = {
    "#0072B2": "#4aa8e0", "#882255": "#e06aa8", "#117733": "#4fb877", "#332288": "#9c8ff0", "#D55E00": "#f08a3c",
    "#999933": "#c4c458", "#555555": "#a8a8a8",
  };

  const look = () => {
    const night = dark.matches && !printing;
    const ink = night ? "#d5d9de" : "#333a42", page = night ? "#16191d" : "#ffffff", grid = night ? "#343a41" : "#e6e8eb";
    const axis = { gridcolor: grid, linecolor: ink, zerolinecolor: grid, showline: true, ticks: "outside", tickcolor: grid, automargin: true, title: { standoff: 10 } };
    return { night, page, layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      hoverlabel: { bgcolor: page, bordercolor: grid, font: { color: ink, size: 13 }, namelength: -1, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: night ? "#69727d" : "#aab0b8", activecolor: ink },
    } };
  };

  const prepared = (figure, state, width) => {
    const seen = look();
    let text = JSON.stringify({ data: figure.data, layout: figure.layout });
    if (seen.night) for (const [from, to] of Object.entries(LIGHTER)) text = text.replaceAll(`"${from}"`, `"${to}"`);
    const { data, layout } = JSON.parse(text.replaceAll('"bgcolor":"page"', `"bgcolor":"${seen.page}"`));
    const drawn = data.filter((trace) => Object.entries(trace.when || {}).every(([name, option]) => state[name] === option));
    for (const trace of drawn) {
      if (trace.xs) trace.x = trace.xs[state.x] || trace.xs.steps;
      if (seen.night && trace.night) trace.line.color = trace.night;
      delete trace.xs; delete trace.when; delete trace.night;
    }
    if (figure.titles) layout.xaxis = { ...layout.xaxis, title: { text: figure.titles[state.x] } };
    layout.template = { layout: seen.layout };
    layout.margin = { l: 56, r: 14, t: 26, b: 50, ...layout.margin };
    const named = drawn.filter((trace) => trace.name && trace.showlegend !== false);
    if (layout.showlegend === undefined && named.length < 2) layout.showlegend = false;
    const below = width < 640 || layout.legend?.orientation === "h";
    if (layout.showlegend !== false && below) {
      const longest = Math.max(...named.map((trace) => trace.name.length)) * 7 + 60;
      const rows = Math.ceil(named.length / Math.max(1, Math.floor(width / longest)));
      const inner = layout.height - 76;
      layout.height += 30 + 20 * rows;
      layout.margin.b += 30 + 20 * rows;
      layout.legend = { ...layout.legend, orientation: "h", x: 0, xanchor: "left", y: -56 / inner, yanchor: "top", font: { size: 12 } };
    }
    return [drawn, layout];
  };

  const draw = (id) => {
    const div = document.getElementById(id), figure = figures[id];
    figure.state ??= Object.fromEntries((figure.controls || []).map((control) => [control.name, control.options[0]]));
    const [data, layout] = prepared(figure, figure.state, div.clientWidth);
    div.style.minHeight = `${layout.height}px`;
    const config = { responsive: true, displaylogo: false, displayModeBar: hovers ? "hover" : false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
    return Plotly.react(div, data, layout, config);
  };

  const controls = (id) => {
    const figure = figures[id];
    if (!figure.controls) return;
    const bar = document.createElement("div");
    bar.className = "controls";
    for (const { name, label, options } of figure.controls) {
      const group = document.createElement("span");
      group.textContent = label;
      const buttons = options.map((option) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = option;
        button.setAttribute("aria-pressed", String(option === options[0]));
        button.addEventListener("click", () => {
          figure.state[name] = option;
          buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
          draw(id);
        });
        return button;
      });
      group.append(...buttons);
      bar.append(group);
    }
    document.getElementById(id).before(bar);
  };

  const load = async () => {
    const text = atob(packed.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
  };

  const failed = (error) => {
    console.error(error);
    const note = document.createElement("p");
    note.className = "trouble";
    note.textContent = `The figures cannot be drawn here (${error}). A browser from 2023 or later can; the same pictures are the PNG files beside this page.`;
    document.querySelector("h1").after(note);
    for (const hidden of document.querySelectorAll("figure noscript")) {
      hidden.parentElement.querySelector(".panels, .single").remove();
      hidden.outerHTML = hidden.textContent;
    }
  };

  const all = async () => {
    await load();
    for (const id of Object.keys(figures)) { controls(id); await draw(id); }
    root.dataset.drawn = String(Math.round(performance.now()));
    const redraw = () => Object.keys(figures).forEach(draw);
    let wide = innerWidth;
    addEventListener("resize", () => { if ((wide < 700) !== (innerWidth < 700)) redraw(); wide = innerWidth; });
    dark.addEventListener("change", redraw);
    addEventListener("beforeprint", () => { printing = true; redraw(); });
    addEventListener("afterprint", () => { printing = false; redraw(); });
  };
  all().catch(failed);
})();
