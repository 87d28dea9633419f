// Named limits, and who has how much of them.

import { get, items, mayAct, part, put, remove } from "../api.js";
import { fill, h, keyed } from "../dom.js";
import { duration, number } from "../format.js";
import { button, confirm, dialog, empty, field, table, toast } from "../parts.js";

export function limits(context) {
  context.title("Limits");
  const body = h("tbody");
  const none = h("div");
  const box = table("Limits", [["Limit"], ["In use", "bar-cell"], ["Held by", "wide"], ["", "right"]], body);
  const loader = context.loader(async () => {
    const list = items(await get("limits", null, context.signal));
    keyed(body, list.slice(0, 200), (one) => one.name, row);
    box.hidden = !list.length;
    fill(none, list.length ? null : empty("There are no named limits."));
  }, 2);

  function row(one) {
    const share = one.limit ? Math.max(0, Math.min(1, one.used / one.limit)) : 0;
    const meter = h("div.progress", { class: share >= 1 ? "full" : "", role: "img", "aria-label": `${number(one.used)} of ${number(one.limit)} in use` }, h("span"));
    meter.firstElementChild.style.width = `${share * 100}%`;
    const holders = one.holders ?? [];
    return h("tr", null,
      h("td.main-cell", null, one.name, h("span.sub", null, said(one))),
      h("td.bar-cell", null, h("div.progress-row", null, one.period || !one.limit ? null : meter,
        h("span.num", null, `${number(one.used)}${one.limit === null || one.limit === undefined ? "" : ` / ${number(one.limit)}`}`))),
      h("td.wide", null, holders.length
        ? holders.slice(0, 6).map((x) => h("div.small", null, `engine ${x.engine}: ${number(x.units)}${x.waiting ? `, wants ${number(x.waiting)}` : ""}`))
        : h("span.muted", null, "nobody")),
      h("td.right", null, mayAct()
        ? [button("Edit", () => edit(one), { kind: "small", "aria-label": `Edit ${one.name}` }),
            button("Lift", () => confirm(`Lift ${one.name}?`, "Then it holds nobody back any more, unless code declares it.", "Lift", async () => {
              await remove(`limits/${part(one.name)}`);
              loader.now();
              return true;
            }), { kind: "small danger-text", "aria-label": `Lift ${one.name}` })]
        : null));
  }

  function edit(one) {
    const name = h("input", { type: "text", autocomplete: "off", value: one?.name ?? "", readonly: Boolean(one), maxlength: "200" });
    const limit = h("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: one?.limit ?? "" });
    const period = h("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: one?.period ?? "" });
    const burst = h("input", { type: "text", inputmode: "numeric", autocomplete: "off", value: one?.burst ?? "" });
    const fields = {
      name: field("Name", name, { required: true }),
      limit: field("Limit", limit, { required: true, help: "How many at once; with a period, how many in it." }),
      period: field("Period in seconds", period, { help: "Only of rates." }),
      burst: field("Burst", burst, { help: "How many may come at once, of rates." }),
    };
    const read = (key, control, isNeeded) => {
      const text = control.value.trim();
      const value = Number(text);
      const wrong = text === "" ? (isNeeded ? "It must be given." : "") : Number.isFinite(value) && value >= 0 ? "" : "It must be a number, at least 0.";
      fields[key].complain(wrong);
      return wrong ? undefined : text === "" ? null : value;
    };
    dialog(one ? `Limit ${one.name}` : "New limit", Object.values(fields), {
      okay: "Set",
      async submit() {
        fields.name.complain(name.value.trim() ? "" : "It must be given.");
        const body = { limit: read("limit", limit, true), period: read("period", period), burst: read("burst", burst) };
        if (!name.value.trim() || Object.values(body).includes(undefined)) return false;
        await put(`limits/${part(name.value.trim())}`, body);
        toast("It is set.");
        loader.now();
        return true;
      },
    });
  }

  loader.now();
  context.every(3, loader.soon);
  return h("div.page", null, h("header.page-head", null, h("h1", null, "Limits"), h("span.spring"),
    mayAct() ? button("New limit…", () => edit(null), { kind: "primary" }) : null), box, none);
}

function said(one) {
  if (one.limit === null || one.limit === undefined) return "declared in code";
  const burst = one.burst ? `, ${number(one.burst)} at once` : "";
  return one.period ? `${number(one.limit)} in ${duration(one.period)}${burst}` : `${number(one.limit)} at once`;
}
