// Prints figures as tables in Markdown, and writes them as JSON with every round's value.
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { ratios, spread } from './statistics.mjs';

export const count = (value) => value.toLocaleString('en-US');

/** Formats a number with three digits. */
export const figure = (value) => {
  if (value === undefined || Number.isNaN(value)) return '–';
  if (Math.abs(value) >= 100) return count(Math.round(value));
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
};

const round = (value) => value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
const range = ({ min, median, max }) =>
  min === max ? round(median) : `${round(median)} (${round(min)} – ${round(max)})`;

/** Formats an aim, {min} or {max}, as a bound. */
const bound = (aim, unit = '') => {
  if (!aim) return '';
  return aim.min === undefined ? `≤ ${figure(aim.max)}${unit}` : `≥ ${figure(aim.min)}${unit}`;
};
const isMet = (aim, value) => value >= (aim.min ?? -Infinity) && value <= (aim.max ?? Infinity);

/**
 * Creates a table of figures, each with its baseline of the same rounds.
 * @param rows each `{figure, ours, baseline, theirs, aim}`: the values of both sides' rounds, the name of the baseline,
 * and the bound of the median ratio; with `aimOf: 'value'` the bound of the figure itself
 */
export function comparison(title, rows, notes = []) {
  const shown = rows.map(({ figure: name, ours, baseline, theirs, aim, aimOf = 'ratio' }) => {
    const ratio = ratios(ours, theirs);
    const value = spread(ours);
    const judged = aimOf === 'ratio' ? ratio.median : value.median;
    return {
      ...{ figure: name, ours, baseline, theirs, ratio, aim, aimOf },
      met: aim ? isMet(aim, judged) : undefined,
      cells: [
        ...[name, figure(value.median), baseline, figure(spread(theirs).median), range(ratio)],
        bound(aim, aimOf === 'ratio' ? ' ×' : ''),
        aim ? (isMet(aim, judged) ? 'yes' : 'no') : '',
      ],
    };
  });
  const columns = ['Figure', 'Control plane', 'Baseline', 'Measured', 'Ratio', 'Aim', 'Met'];
  return {
    ...{ title, notes, columns },
    cells: shown.map(({ cells }) => cells),
    rows: shown.map(({ cells: _, ...row }) => row),
  };
}

/** Creates another table. @param columns names, and functions that return the cell of a row */
export function table(title, columns, rows, notes = []) {
  const texts = Object.values(columns);
  const cells = rows.map((row) => texts.map((textOf) => String(textOf(row))));
  return { title, notes, columns: Object.keys(columns), cells, rows };
}

const line = (cells) => `| ${cells.join(' | ')} |`;

/** Describes the machine and the programs of the figures. */
export function machine() {
  const model = cpus()[0]?.model.trim();
  return { cores: cpus().length, model, node: process.versions.node };
}

/** Prints tables as Markdown. */
export function print(tables) {
  for (const { title, notes, columns, cells } of tables) {
    console.log(`\n**${title}**\n`);
    console.log(line(columns));
    console.log(line(columns.map((_, i) => (i === 0 ? '---' : '--:'))));
    for (const row of cells) console.log(line(row));
    for (const note of notes) console.log(`\n${note}`);
  }
}

/** Writes tables to a file as JSON: the rows with their raw values. */
export function write(path, head, tables) {
  const plain = tables.map(({ title, notes, rows }) => ({ title, notes, rows }));
  writeFileSync(path, `${JSON.stringify({ ...head, tables: plain }, undefined, 2)}\n`);
}
