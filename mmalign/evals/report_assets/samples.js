"use strict";
/* Samples, numbers and pictures of the page. Texts reach it as text nodes only, never as markup. */
const samples = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const MINUS = "\u2212";

  /** An element with properties (class, text, listeners as functions, attributes) and children. */
  function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (name === "text") node.textContent = value;
      else if (typeof value === "function") node.addEventListener(name, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  /* ------------------------------------------------------------------------------------------- numbers */

  function number(value, signed = false) {
    if (value === null) return "failed";
    const text = String(Number(value.toPrecision(signed ? 3 : 4)));
    return ((signed && value > 0 ? "+" : "") + text).replaceAll("-", MINUS);
  }

  /** A name that may break after its joints rather than anywhere. */
  function named(title) {
    const parts = title.split(/(?<=[_.:/-])/);
    return el("span", {}, ...parts.flatMap((part, place) => (place ? [document.createElement("wbr"), part] : [part])));
  }

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  /** Wilson's interval of `share` among `num` independent trials. */
  function wilson(share, num) {
    const z2 = data.z * data.z;
    const shrink = 1 / (1 + z2 / num);
    const centre = shrink * (share + z2 / (2 * num));
    const half = shrink * data.z * Math.sqrt((share * (1 - share)) / num + z2 / (4 * num * num));
    return [Math.max(0, centre - half), Math.min(1, centre + half)];
  }

  /* ------------------------------------------------------------------------------------------- samples */

  const reasons = new Map(data.errors.map(([sample, model, reward, text]) => [`${sample} ${model} ${reward}`, text]));
  const failures = new Set(data.errors.map(([sample, model]) => `${sample} ${model}`));
  const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
  const folded = data.samples.map(([id, , prompt, group]) => fold(`${prompt}\n${group}\n${id}`));

  const value = (model, reward, sample) => data.values[model][sample][reward];
  const reason = (model, reward, sample) => reasons.get(`${sample} ${model} ${reward}`) ?? "no value was stored";

  /** By how much `model` is better than `base` by a reward; null where one of the scores is missing. */
  function gain(reward, sample, base = state.base, model = state.model) {
    const [before, after] = [value(base, reward, sample), value(model, reward, sample)];
    return before === null || after === null ? null : (after - before) * data.rewards[reward].sign;
  }

  function failed(sample) {
    return sides().some((model) => data.shown[model][sample] < 0 || failures.has(`${sample} ${model}`));
  }

  /** How far the rewards pull apart: the smaller of the best gain and the worst loss, each in units of the
      usual size of that reward's gains; 0 where none contradicts another. */
  function disagreement(sample) {
    let [best, worst] = [0, 0];
    data.rewards.forEach((_, reward) => {
      const change = gain(reward, sample);
      if (change === null || !usual()[reward]) return;
      best = Math.max(best, change / usual()[reward]);
      worst = Math.min(worst, change / usual()[reward]);
    });
    return Math.min(best, -worst);
  }

  let usualOf = { key: "", sizes: [] };
  function usual() {
    const key = `${state.base} ${state.model}`;
    if (usualOf.key !== key) {
      const sizes = data.rewards.map((_, reward) => {
        const squares = data.samples.map((_, sample) => gain(reward, sample)).filter((g) => g !== null).map((g) => g * g);
        return Math.sqrt(squares.reduce((sum, square) => sum + square, 0) / (squares.length || 1));
      });
      usualOf = { key, sizes };
    }
    return usualOf.sizes;
  }

  const alone = data.names.length === 1;
  const sides = () => (alone ? [0] : [state.base, state.model]);

  /* ------------------------------------------------------------------------------------------ pictures */

  const blocks = new Map();
  const link = (picture) => [data.prefix, data.files[picture]].join("/").split("/").map(encodeURIComponent).join("/");

  function thumbnail(picture) {
    const place = data.place[picture];
    if (place < 0) return link(picture);
    const block = Math.floor(place / data.chunk);
    if (!blocks.has(block)) blocks.set(block, JSON.parse($(`thumbnails-${block}`).textContent));
    return `data:image/webp;base64,${blocks.get(block)[place % data.chunk]}`;
  }

  /** A clip that plays: muted and looped, its strip of frames until it is read. */
  function clip(picture, alt) {
    const poster = data.place[picture] < 0 ? null : thumbnail(picture);
    const node = el("video", {
      "aria-label": alt, controls: true, loop: true, playsinline: true, preload: "metadata", poster, src: link(picture),
    });
    node.muted = node.autoplay = true;
    node.addEventListener("error", () => {
      const why = `this browser cannot play ${data.files[picture]}, or it is not where this page expects it`;
      const still = poster ? el("img", { alt, src: poster }) : null;
      node.replaceWith(el("div", {}, ...[still, el("span", { class: "wrong small", text: why })].filter(Boolean)));
    });
    return node;
  }

  /** A sound that plays under its spectrogram. */
  function sound(picture, alt) {
    const node = el("audio", { "aria-label": alt, controls: true, preload: "none", src: link(picture) });
    const still = data.place[picture] < 0 ? null : el("img", { alt, src: thumbnail(picture) });
    return el("div", {}, ...[still, node].filter(Boolean));
  }

  const MISSING = data.clips ? "no clip" : data.sounds ? "no sound" : "no picture";

  /** A picture as a node: small or full size, or in words why there is none. Clips and sounds play at full size. */
  function image(picture, alt, full = false) {
    if (picture < 0) return el("span", { class: "absent", text: MISSING });
    if (data.sounds && (full || data.place[picture] < 0)) return sound(picture, alt);
    if (data.clips && (full || data.place[picture] < 0)) return clip(picture, alt);
    const node = el("img", { alt, decoding: "async", src: thumbnail(picture) });
    node.addEventListener("load", () => node.classList.toggle("pixels", node.naturalWidth < 128));
    node.addEventListener("error", () => {
      const why = data.problems[picture] ?? `${data.files[picture]} is not where this page expects it`;
      node.replaceWith(el("span", { class: "absent", text: why }));
    });
    if (full && data.place[picture] >= 0) {
      const whole = new Image();
      whole.addEventListener("load", () => { node.src = whole.src; });
      whole.src = link(picture);
    }
    return node;
  }

  /* --------------------------------------------------------------------------------------------- state */

  const state = {
    words: "", only: "all", group: "", sort: "suite", reward: data.primary,
    base: 0, model: data.names.length - 1, list: [], shown: 0, open: -1,
  };
  return {
    $, alone, data, disagreement, el, failed, fold, folded, gain, image, link, named, number, percent, reason, sides, state, value, wilson,
  };
})();
