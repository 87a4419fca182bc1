"use strict";
/* The blind vote: sides shuffled, names hidden, the result shown only when the vote has ended. */
(() => {
  const { $, data, el, gain, image, link, named, percent, state, wilson } = samples;
  const MEDIA = data.clips ? "clips" : data.sounds ? "sounds" : "pictures";
  const VOTES = { 1: "first", 2: "second", 0: "neither" };
  let session = null;

  /** A 32-bit hash of a text: FNV-1a with a final mixing, so that its lowest bit is fair. */
  function hash(text) {
    let h = 0x811c9dc5;
    for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return (h ^ (h >>> 16)) >>> 0;
  }

  /* ------------------------------------------------------------------------------------------- session */

  const names = () => [data.names[state.base], data.names[state.model]];
  const key = (seed) => ["mmalign-vote", data.fingerprint, ...names(), seed].join("\u001f");
  const index = new Map(data.samples.map(([id], sample) => [id, sample]));
  let storing = true;

  function load(seed) {
    try {
      return JSON.parse(localStorage.getItem(key(seed)));
    } catch {
      storing = false;
      return null;
    }
  }

  function save() {
    try {
      localStorage.setItem(key(session.seed), JSON.stringify(session));
      storing = true;
    } catch {
      storing = false;
    }
  }

  /** Samples of the current list with two different pictures, in an order that the seed decides. */
  function eligible(seed) {
    const able = state.list.filter((sample) => {
      const [one, other] = [data.shown[state.base][sample], data.shown[state.model][sample]];
      return one >= 0 && other >= 0 && one !== other;
    });
    const rank = new Map(able.map((sample) => [sample, hash(`${seed} order ${data.samples[sample][0]}`)]));
    return able.sort((one, other) => rank.get(one) - rank.get(other) || one - other);
  }

  /** The two models in the order in which they are shown for a sample. */
  function shuffled(sample) {
    const turned = hash(`${session.seed} side ${data.samples[sample][0]}`) & 1;
    return turned ? [session.model, session.base] : [session.base, session.model];
  }

  const place = () => session.samples.findIndex((id) => !(id in session.votes));

  /* -------------------------------------------------------------------------------------------- asking */

  function show(...nodes) {
    $("vote-body").replaceChildren(...nodes.filter(Boolean));
    $("vote-body").focus();
  }

  function open() {
    if (!session || session.base !== state.base || session.model !== state.model) session = null;
    if (!$("vote").open) $("vote").showModal();
    if (session) ask(); else settings();
      }

  function settings() {
    session = null;
    const seed = el("input", { type: "number", id: "vote-seed", value: data.seed, min: 0, step: 1 });
    const able = eligible(data.seed).length;
    const number = el("input", { type: "number", id: "vote-count", value: Math.min(able, 100), min: 1, max: able, step: 1 });
    const resume = el("p", {});
    const refresh = () => {
      const stored = load(seed.value);
      const done = stored ? Object.keys(stored.votes).length : 0;
      resume.replaceChildren(...(stored ? [el("button", {
        type: "button", class: "strong", id: "vote-resume",
        text: stored.finished ? "Show the result" : `Go on at ${done + 1} of ${stored.samples.length}`,
        click: () => { session = stored; ask(); },
      })] : []));
    };
    seed.addEventListener("input", refresh);
    refresh();
    const begin = el("button", {
      type: "button", class: "strong", id: "vote-start", text: "Start", disabled: able === 0,
      click: () => {
        const wanted = Math.max(1, Math.min(Number(number.value) || 1, able));
        const samples = eligible(seed.value).slice(0, wanted).map((sample) => data.samples[sample][0]);
        session = { seed: seed.value, base: state.base, model: state.model, samples, votes: {}, finished: false };
        save();
        ask();
      },
    });
    show(
      el("p", { text: `Two ${MEDIA} of one prompt, side by side in an order that the seed decides. Which model made `
        + "which stays hidden until you end the vote; only then is the result shown." }),
      el("p", { class: "muted", text: `${able} of the ${state.list.length} samples the filters keep can be voted on: both `
        + `${MEDIA} are there and they differ.` }),
      el("div", { class: "tools" }, el("label", {}, "Pairs ", number), el("label", {}, "Seed ", seed)),
      el("div", { class: "buttons" }, begin), resume);
  }

  function ask() {
    const at = place();
    if (session.finished || at < 0) { finish(); return; }
    const sample = index.get(session.samples[at]);
    const prompt = data.samples[sample][2];
    const figures = shuffled(sample).map((model, side) => el("figure", {},
      image(data.shown[model][sample], `${side ? "second" : "first"} ${MEDIA.slice(0, -1)}`, MEDIA !== "pictures"),
      el("figcaption", { text: side ? "2" : "1" })));
    if (MEDIA === "pictures") sharpen(figures, shuffled(sample).map((model) => data.shown[model][sample]));
    const button = (choice, text) => el("button", {
      type: "button", class: "choice", "data-vote": choice, click: () => vote(choice),
    }, el("kbd", { text: choice }), ` ${text}`);
    const total = session.samples.length;
    show(
      el("progress", { max: total, value: at, "aria-label": "Progress" }),
      el("p", { class: "muted small num", role: "status", text: `${at + 1} of ${total}${storing ? "" : " \u00b7 this browser does not keep the progress"}` }),
      el("p", { class: "prompt", dir: "auto", text: prompt }),
      el("p", { class: "muted small", text: "Which one is better?" }),
      el("div", { class: "pair" }, ...figures),
      el("div", { class: "choices" }, button(1, "First"), button(0, "Neither"), button(2, "Second")),
      el("div", { class: "buttons" },
        el("button", { type: "button", id: "vote-undo", text: "Take back (u)", disabled: at === 0, click: undo }),
        el("button", { type: "button", id: "vote-end", text: "End and show the result", disabled: at === 0, click: finish })));
  }

  /** Full size for both sides or for none: a sharper picture would win. */
  function sharpen(figures, pictures) {
    const whole = pictures.map((picture) => new Promise((resolve, reject) => {
      const probe = new Image();
      probe.addEventListener("load", () => resolve(probe.src));
      probe.addEventListener("error", reject);
      probe.src = link(picture);
    }));
    Promise.all(whole).then((sources) => figures.forEach((node, side) => {
      const shown = node.querySelector("img");
      if (shown) shown.src = sources[side];
    }), () => undefined);
  }

  function vote(choice) {
    session.votes[session.samples[place()]] = choice;
    save();
    ask();
  }

  function undo() {
    const at = place();
    if (at > 0) {
      delete session.votes[session.samples[at - 1]];
      save();
    }
    ask();
  }

  /* -------------------------------------------------------------------------------------------- result */

  /** 1 where the model won, 0 where the base did, 0.5 for a tie. */
  function outcome(id) {
    const choice = session.votes[id];
    if (choice === 0) return 0.5;
    return shuffled(index.get(id))[choice - 1] === session.model ? 1 : 0;
  }

  /** Win rate as the mean over prompts of the mean over a prompt's samples, Wilson's interval over prompts. */
  function summary() {
    const voted = session.samples.filter((id) => id in session.votes);
    const prompts = new Map();
    for (const id of voted) {
      const item = data.samples[index.get(id)][1];
      prompts.set(item, [...(prompts.get(item) ?? []), outcome(id)]);
    }
    const mean = (list) => list.reduce((sum, entry) => sum + entry, 0) / list.length;
    const rate = mean([...prompts.values()].map(mean));
    const tally = (wanted) => voted.filter((id) => outcome(id) === wanted).length;
    const [low, high] = wilson(rate, prompts.size);
    return { voted, rate, low, high, prompts: prompts.size, won: tally(1), tied: tally(0.5), lost: tally(0) };
  }

  /** How often a reward prefers the side that was voted for, where both decide. */
  function agreement(reward, voted) {
    const both = voted.filter((id) => outcome(id) !== 0.5)
      .map((id) => [outcome(id) === 1, gain(reward, index.get(id), session.base, session.model)])
      .filter(([, change]) => change !== null && change !== 0);
    const same = both.filter(([won, change]) => won === change > 0).length;
    if (!both.length) return "no pair that both decide";
    const [low, high] = wilson(same / both.length, both.length);
    return `${same} of ${both.length}, ${percent(same / both.length)} (${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)})`;
  }

  function finish() {
    session.finished = true;
    save();
    const found = summary();
    const [base, model] = [data.names[session.base], data.names[session.model]];
    const said = found.low > 0.5 ? `You prefer ${model}` : found.high < 0.5 ? `You prefer ${base}`
      : "Your votes show no difference";
    const rows = data.rewards.map((reward, number) => el("tr", {},
      el("th", { scope: "row" }, named(reward.title)), el("td", { class: "num", text: agreement(number, found.voted) })));
    const command = `mmalign data check ${fileName()} --root ${quoted(data.root)} --ties soft${data.sounds ? " --media audio" : ""}`;
    show(
      el("p", { class: "lead strong", id: "vote-verdict", text: said }),
      el("p", { class: "num", id: "vote-result", text: `${model} wins ${percent(found.rate)} against ${base}, `
        + `${100 * data.confidence} % interval ${percent(found.low)} to ${percent(found.high)} (Wilson, ${found.prompts} prompts). `
        + `Won ${found.won}, tied ${found.tied}, lost ${found.lost}; ties count half. Seed ${session.seed}.` }),
      el("h3", { text: "Rewards that agree with you" }),
      el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, ...rows))),
      el("div", { class: "buttons" },
        el("button", { type: "button", class: "strong", id: "vote-export", text: "Save as preference rows", click: download }),
        el("button", { type: "button", id: "vote-again", text: "Start anew", click: settings })),
      el("p", { class: "muted small", text: "One JSON record per vote, as training reads them. Paths start at the folder of "
        + `the ${MEDIA}${data.clips ? "." : ":"}` }),
      data.clips ? null : el("pre", {}, el("code", { text: command })));
  }

  const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const fileName = () => `votes-${data.suite.replace(/[^\w.-]+/g, "_")}-${session.seed.replace(/\D/g, "")}.jsonl`;

  /** Votes as rows of the layout two_images (of clips video_a, of sounds audio_a); label is the probability that a is better. */
  function exported() {
    const kind = data.clips ? "video" : data.sounds ? "audio" : "image";
    return summary().voted.map((id) => {
      const sample = index.get(id);
      const [one, other] = shuffled(sample);
      return JSON.stringify({
        id, prompt: data.samples[sample][2],
        [`${kind}_a`]: data.files[data.shown[one][sample]], [`${kind}_b`]: data.files[data.shown[other][sample]],
        label: { 1: 1, 2: 0, 0: 0.5 }[session.votes[id]],
        model_a: data.names[one], model_b: data.names[other],
        vote: VOTES[session.votes[id]], suite: data.suite, seed: session.seed,
      }) + "\n";
    }).join("");
  }

  function download() {
    const address = URL.createObjectURL(new Blob([exported()], { type: "application/jsonl" }));
    const anchor = el("a", { href: address, download: fileName() });
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  /* ---------------------------------------------------------------------------------------------- start */

  $("vote-open").addEventListener("click", open);
  $("vote-close").addEventListener("click", () => $("vote").close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !$("vote").open) return;
    if (!session || session.finished || event.target.matches("input")) return;
    if (event.key in VOTES) vote(Number(event.key));
    else if (event.key === "u" || event.key === "Backspace") undo();
    else return;
    event.preventDefault();
  });
})();
