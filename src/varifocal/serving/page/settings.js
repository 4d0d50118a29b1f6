// What a person sets: how answers are chosen, how long they may be, and the colours.

const at = (id) => document.getElementById(id);
const MOST_STOPS = 4; // as OpenAI's API has it
const DARK = matchMedia("(prefers-color-scheme: dark)");

function kept(name, otherwise) {
  try {
    return localStorage.getItem(`varifocal.${name}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`varifocal.${name}`, value);
  } catch {
    // Storage is shut off: it holds until the page is left.
  }
}

/** Bind the dialog and the colour button; returns the fields of a request. */
export function bindSettings() {
  const dialog = at("settings");
  const [temperature, tokens, colours] = [at("temperature"), at("max-tokens"), at("colours")];
  temperature.value = kept("temperature", "0");
  tokens.value = kept("tokens", "256");
  const [topP, seed, stop] = [["top-p", "1"], ["seed", ""], ["stops", ""]].map(([name, otherwise]) => {
    const field = at(name);
    field.value = kept(name, otherwise);
    field.addEventListener("change", () => { if (field.checkValidity()) keep(name, field.value); });
    return field;
  });
  colours.value = kept("colours", "system");
  const tellTemperature = () => { at("temperature-value").value = Number(temperature.value).toFixed(1); };
  tellTemperature();
  temperature.addEventListener("input", tellTemperature);
  temperature.addEventListener("change", () => keep("temperature", temperature.value));
  tokens.addEventListener("change", () => { if (tokens.checkValidity()) keep("tokens", tokens.value); });
  colours.addEventListener("change", () => paint(colours.value));
  at("open-settings").addEventListener("click", () => dialog.showModal());
  at("theme").addEventListener("click", () => {
    colours.value = isDark() ? "light" : "dark";
    paint(colours.value);
  });
  DARK.addEventListener("change", nameThemeButton);
  nameThemeButton();
  return () => ({
    temperature: Number(temperature.value),
    max_tokens: tokens.checkValidity() ? Number(tokens.value) : 256,
    ...(topP.value && topP.checkValidity() ? { top_p: Number(topP.value) } : {}),
    ...(seed.value && seed.checkValidity() ? { seed: Number(seed.value) } : {}),
    ...(stop.value.trim() ? { stop: stop.value.split("\n").filter((line) => line.trim()).slice(0, MOST_STOPS) } : {}),
  });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : DARK.matches;
}

function paint(colours) {
  if (colours === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = colours;
  keep("colours", colours);
  nameThemeButton();
}

function nameThemeButton() {
  at("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
}
