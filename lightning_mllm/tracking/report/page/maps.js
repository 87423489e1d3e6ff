// The maps of one sample: numbers and words per layer and visual token.
const MISSING = 255;

const dequantise = (about, codes, size) => {
  const step = (place) => (about.high[place] - about.low[place]) / Math.max(1, about.levels - 1);
  return {
    layers: about.layers,
    places: about.low.length,
    low: (place) => about.low[place],
    high: (place) => about.high[place],
    step,
    at: (place, index) => {
      const code = codes[place * size + index];
      return code === MISSING ? null : about.low[place] + code * step(place);
    },
  };
};

// -> {values: name -> map, words: name -> map with said(place, token), sets: name -> Set of tokens}
const openMaps = async (pass, sample) => {
  const bytes = await inflate(sample.packed);
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const body = bytes.subarray(4 + length);
  const tokens = sample.tokens;
  const values = new Map(), words = new Map(), sets = new Map();
  for (const [name, about] of Object.entries(header.values)) {
    const { label, low, high } = pass.values[name] || { label: "", low: 0, high: 0 };
    values.set(name, { ...dequantise(about, body.subarray(about.at), tokens), name, label, ends: [low, high] });
  }
  for (const [name, about] of Object.entries(header.words)) {
    const count = about.layers.length * about.k * tokens;
    const planes = Array.from({ length: about.bytes }, (_, k) => body.subarray(about.at + k * count));
    const scores = dequantise(about, body.subarray(about.at + about.bytes * count), about.k * tokens);
    const word = (place, rank, token) => {
      const index = (place * about.k + rank) * tokens + token;
      const text = pass.dictionary[planes.reduce((sum, plane, k) => sum + plane[index] * 256 ** k, 0)];
      return text.replaceAll("\ufffd", "") || (text ? "(part of a letter)" : text);
    };
    const said = (place, token) => Array.from({ length: about.k }, (_, rank) => ({
      word: word(place, rank, token), score: scores.at(place, rank * tokens + token) }));
    const { label, low, high } = pass.words[name];
    words.set(name, { ...scores, name, label, said, k: about.k, ends: [low, high],
      at: (place, token) => scores.at(place, token), first: (place, token) => word(place, 0, token) });
  }
  for (const [name, inside] of Object.entries(header.sets)) sets.set(name, new Set(inside));
  return { values, words, sets, tokens };
};

const layerName = (map, place) => (map.layers.length ? `layer ${map.layers[place]}` : "all layers together");

// the place of a map at a layer, or the nearest that it has
const nearest = (map, layer) => {
  if (map.layers.length < 2 || layer === null) return 0;
  const far = map.layers.map((each) => Math.abs(each - layer));
  return far.indexOf(Math.min(...far));
};

const meanOf = (map, place, tokens) => {
  let sum = 0, count = 0;
  for (const token of tokens) {
    const value = map.at(place, token);
    if (value !== null) { sum += value; count += 1; }
  }
  return count ? sum / count : NaN;
};

// low and high of the colours: of this layer, of this sample, or of all samples
const endsOf = (map, place, scale, tokens) => {
  if (scale === "all") return map.ends;
  const places = scale === "layer" ? [place] : Array.from({ length: map.places }, (_, k) => k);
  let low = Infinity, high = -Infinity;
  for (const each of places) {
    for (let token = 0; token < tokens; token += 1) {
      const value = map.at(each, token);
      if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    }
  }
  return low <= high ? [low, high] : [0, 0];
};
