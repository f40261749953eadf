import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import type { Json } from './api';

const text = (file: string) => readFileSync(join(__dirname, '../..', file), 'utf8');

export interface Alert {
  readonly alert: string;
  readonly expr: string;
  readonly for?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<'summary' | 'description' | 'runbook_url', string>>;
}

const rulesOf = (file: string): Json[] => parse(text(file)).groups.flatMap((group: Json) => group.rules);

export const alerts: readonly Alert[] = rulesOf('deploy/prometheus/alerts.yml');
export const recordings: readonly { record: string; expr: string }[] = rulesOf(
  'deploy/prometheus/recording.yml',
);
export const ruleTests: readonly Json[] = parse(text('deploy/prometheus/alerts.test.yml')).tests;
export const dashboard = JSON.parse(text('deploy/grafana/dashboard.json'));

/** Grafana's variables as it fills them in. */
const filled = (expression: string) =>
  expression.replaceAll('$__rate_interval', '1m').replaceAll('"$kind"', '".*"');

/** Every expression, with what it belongs to. */
export const expressions: readonly { of: string; expr: string }[] = [
  ...alerts.map(({ alert, expr }) => ({ of: alert, expr })),
  ...recordings.map(({ record, expr }) => ({ of: record, expr })),
  ...dashboard.panels.flatMap(({ title, targets = [] }: Json) =>
    targets.map(({ expr }: Json) => ({ of: title, expr: filled(expr) })),
  ),
  ...dashboard.annotations.list.map(({ name, expr }: Json) => ({ of: name, expr })),
];
