// Prints what the pacing rule does in each scenario, and ends with 1 if a threshold is missed. After npm run build:
// node bench/politeness/politeness.mjs. The model: simulation.mjs.
import { measure, missedBy, OTHERS, SCENARIOS, WindowRule } from './simulation.mjs';

const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : '-');
const count = (value) => value.toFixed(value < 10 ? 1 : 0);
const both = ({ mean, worst }, format) => `${format(mean)} (${format(worst)})`.padStart(19);

const line = (name, { good, overload, perMinute }, title) =>
  `${name.padEnd(9)}${both(good, percent)}${both(overload, percent)}${both(perMinute, count)}   ${title}`;

let isMissed = false;
const table = (heading, scenarios, Rule) => {
  console.log(`\n${heading}`);
  for (const [name, scenario] of Object.entries(scenarios)) {
    const figures = measure(scenario, Rule);
    const missed = Rule ? [] : missedBy(figures, scenario.needs);
    isMissed ||= missed.length > 0;
    console.log(line(name, figures, [scenario.title, ...missed.map((text) => `MISSED: ${text}`)].join('; ')));
  }
};

console.log('Means of 20 seeds, in brackets the worst: good, overload, queries a minute.');
table('The rule:', SCENARIOS);
table('The rule, without thresholds:', OTHERS);
table(
  'For contrast, a window of leases, + 1 for each answer and halved for each failure:',
  SCENARIOS,
  WindowRule,
);
process.exitCode = isMissed ? 1 : 0;
