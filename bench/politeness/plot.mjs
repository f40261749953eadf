// Draws the scenarios of simulation.mjs, each with its first seed. After npm run build:
// node bench/politeness/plot.mjs writes docs/politeness-simulation.svg, the same file each time.
import { writeFileSync } from 'node:fs';
import * as echarts from 'echarts';
import { DURATION_MS, SCENARIOS, simulate } from './simulation.mjs';

const WIDTH = 900;
const PANEL = 210;
const TOP = 60;
/** Seconds that a point is the mean of. */
const STEP = 5;

/** Black, blue and vermilion of Okabe and Ito, which colour-blind readers can distinguish. */
const COLORS = { capacity: '#000000', rate: '#0072b2', dropped: '#d55e00' };

function points(values) {
  const means = [];
  for (let at = 0; at < values.length; at += STEP) {
    const part = values.slice(at, at + STEP);
    means.push([at, Number((part.reduce((sum, value) => sum + value, 0) / part.length).toFixed(1))]);
  }
  return means;
}

const panels = Object.entries(SCENARIOS).map(([name, { title, ...scenario }]) => {
  const { rates, dropped } = simulate(scenario, 1);
  const capacityAt = scenario.capacityAt ?? (() => 100);
  const capacity = rates.map((_, second) => capacityAt(1_000 * second));
  const series = { capacity: points(capacity), rate: points(rates), dropped: points(dropped) };
  return { heading: `${name}: ${title}`, series };
});

const TITLES = {
  capacity: 'answers a second that the server can give',
  rate: 'starts a second',
  dropped: 'dropped a second',
};

const chart = echarts.init(null, null, {
  ...{ renderer: 'svg', ssr: true, width: WIDTH, height: TOP + PANEL * panels.length },
});
chart.setOption({
  animation: false,
  backgroundColor: '#ffffff',
  textStyle: { fontFamily: 'sans-serif' },
  legend: {
    top: 8,
    data: Object.values(TITLES),
    icon: 'rect',
    itemHeight: 4,
    itemGap: 40,
    textStyle: { color: '#000000' },
  },
  title: panels.map(({ heading }, i) => ({
    ...{ text: heading, left: 60, top: TOP - 18 + PANEL * i },
    textStyle: { fontSize: 13, fontWeight: 'bold', color: '#000000' },
  })),
  grid: panels.map((_, i) => ({ left: 60, right: 30, top: TOP + 18 + PANEL * i, height: PANEL - 72 })),
  xAxis: panels.map((_, i) => ({
    ...{ type: 'value', gridIndex: i, min: 0, max: DURATION_MS / 1_000, interval: 60 },
    ...{ axisLabel: { color: '#333333', formatter: '{value} s' }, splitLine: { show: false } },
  })),
  yAxis: panels.map((_, i) => ({
    ...{ type: 'value', gridIndex: i, min: 0 },
    ...{ axisLabel: { color: '#333333' }, splitNumber: 4 },
  })),
  series: panels.flatMap(({ series }, i) =>
    Object.entries(series).map(([name, data]) => ({
      ...{ type: 'line', name: TITLES[name], data, xAxisIndex: i, yAxisIndex: i, showSymbol: false },
      step: name === 'capacity' ? 'end' : false,
      itemStyle: { color: COLORS[name] },
      lineStyle: { color: COLORS[name], width: 1.5, type: name === 'capacity' ? 'dashed' : 'solid' },
    })),
  ),
});
// Without the styles for a mouse, and with a text for readers that see no picture.
const svg = chart
  .renderToSVGString()
  .replace(/<style.*<\/style>\n/s, '')
  .replaceAll(/ class="[^"]*"/g, '')
  .replace('>', '>\n<title>Rates of starts in the scenarios of the simulation</title>');
chart.dispose();
writeFileSync(new URL('../../docs/politeness-simulation.svg', import.meta.url), `${svg}\n`);
