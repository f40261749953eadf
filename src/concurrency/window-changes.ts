import type { ChangeReason } from './window.entity';

/** What a decision rests on. */
interface Evidence {
  readonly ok: number | null;
  readonly bad: number | null;
  readonly rttRatio: number | null;
}

/** Says in one sentence why a rate changed. */
export function messageOf(reason: ChangeReason, { ok, bad, rttRatio }: Evidence): string {
  const checks = (ok ?? 0) + (bad ?? 0);
  switch (reason) {
    case 'operator':
      return 'An operator set it.';
    case 'pushed_back':
      return `The target refused checks or asked for a pause: ${bad ?? 0} of ${checks} checks were not answered.`;
    case 'failures':
      return `${percent(bad ?? 0, checks)} % of ${checks} checks timed out or could not reach the target.`;
    case 'slower':
      return `The target answers ${(rttRatio ?? 1).toFixed(1)} times as slowly as at best.`;
    case 'room':
      return `${percent(ok ?? 0, checks)} % of ${checks} checks were answered, about as fast as at best.`;
    case 'dead':
      return `None of ${checks} checks was answered.`;
    case 'alive':
      return 'The target answers again.';
  }
}

const percent = (part: number, whole: number): number => Math.round((100 * part) / Math.max(1, whole));
