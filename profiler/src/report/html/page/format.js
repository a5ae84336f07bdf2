// Figures as the rest of the page writes them: see units.rs.
const thousands = (number) => String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, ',');

// As Rust rounds: a tie goes to the even digit.
const fixed = (value, digits) => {
  const scaled = value * 10 ** digits;
  const low = Math.floor(scaled);
  const rounded = scaled - low === 0.5 ? low + (low % 2) : Math.round(scaled);
  return (rounded / 10 ** digits).toFixed(digits);
};

const human = (bytes) => {
  const units = [['B', 1, 0], ['KiB', 2 ** 10, 1], ['MiB', 2 ** 20, 1], ['GiB', 2 ** 30, 2]];
  const fits = units.filter(([, size]) => bytes >= size);
  const [unit, size, digits] = fits[fits.length - 1] ?? units[0];
  return `${fixed(bytes / size, digits)} ${unit}`;
};

const exact = (bytes) => `${human(bytes)} (${thousands(bytes)} B)`;

// An element with attributes and children; text is never read as markup.
const element = (name, attributes = {}, children = []) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
