// The console works without this file. It refreshes what may have changed, and keeps half-written notes.
"use strict";
const EVERY_MS = 15000;
const shown = new Map();

// notes: kept in this tab by the form's action, brought back after a detour, forgotten once they were taken
const keyOf = (form) => "note " + new URL(form.action).pathname;
const written = (form) => [...form.elements].filter((field) => field.name && field.dataset.keep !== "no" &&
  (field.tagName === "TEXTAREA" || ["text", "number"].includes(field.type)));
const sent = sessionStorage.getItem("sent");
sessionStorage.removeItem("sent");
if (sent && document.querySelector(".said")) sessionStorage.removeItem(sent);
for (const form of document.querySelectorAll("form.act")) {
  const kept = JSON.parse(sessionStorage.getItem(keyOf(form)) || "{}");
  for (const field of written(form)) if (kept[field.name] && !field.value) field.value = kept[field.name];
}
document.addEventListener("input", ({ target }) => {
  const form = target.closest("form.act");
  if (form) sessionStorage.setItem(keyOf(form), JSON.stringify(Object.fromEntries(written(form).map((f) => [f.name, f.value]))));
});
document.addEventListener("submit", ({ target }) => sessionStorage.setItem("sent", keyOf(target)));

// refreshing: never what somebody is at, or has begun to write in
function inUse(region) {
  const at = document.activeElement;
  return (at !== region && region.contains(at)) ||
    [...region.querySelectorAll("input,textarea")].some((f) => f.value !== f.defaultValue || f.checked !== f.defaultChecked) ||
    [...region.querySelectorAll("select")].some((s) => s.options.length && !s.options[s.selectedIndex].defaultSelected && s.selectedIndex > 0);
}

async function refresh() {
  const regions = [...document.querySelectorAll("[data-live][id]")];
  if (document.hidden || !regions.length) return;
  try {
    const answer = await fetch(location.href, { headers: { "Finalsale-Live": "1" }, redirect: "error" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const region of regions) {
      const fresh = page.getElementById(region.id);
      if (!fresh || inUse(region) || fresh.innerHTML === shown.get(region.id)) continue;
      const open = [...region.querySelectorAll("details")].map((one) => one.open);
      shown.set(region.id, fresh.innerHTML);
      region.replaceChildren(...fresh.childNodes);
      region.querySelectorAll("details").forEach((one, n) => { one.open ||= Boolean(open[n]); });
    }
  } catch { /* the server is away for a moment: what is shown stays */ }
}
setInterval(refresh, EVERY_MS);
