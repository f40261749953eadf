import { setImmediate as nextTurn } from 'node:timers/promises';
import { Injectable } from '@nestjs/common';
import { Database } from '../database/database';
import { WINDOW_SCOPES, type WindowKey, type WindowScope } from './window.entity';
import {
  boundsOfRow,
  type OperatorEvidence,
  type Rule,
  type RuleState,
  rulesOf,
  WindowStates,
} from './window-rules';
import { type NamedWindow, selectChangesAbove, selectNamedWindows } from './windows.queries';

/** How many changes are read before the event loop serves others. */
const CHANGES_AT_ONCE = 1_000;

/** Tells which limits and rates held at a target, from the changes that are kept and the present windows. */
@Injectable()
export class RuleHistory {
  constructor(private readonly database: Database) {}

  /**
   * Lists the rules that held at a target, the earliest first.
   * @param to exclusive; both in ms since the epoch
   */
  async rulesAt({ kind, target }: WindowKey, from: number, to: number): Promise<Rule[]> {
    const names: Record<WindowScope, NamedWindow> = {
      global: { scope: 'global', kind: '', target: '' },
      kind: { scope: 'kind', kind, target: '' },
      every_target: { scope: 'every_target', kind, target: '' },
      target: { scope: 'target', kind, target },
    };
    const states: Partial<Record<WindowScope, RuleState[]>> = {};
    for (const scope of WINDOW_SCOPES) states[scope] = await this.statesOf(names[scope], from, to);
    return rulesOf(states as Record<WindowScope, RuleState[]>);
  }

  private async statesOf(window: NamedWindow, from: number, to: number): Promise<RuleState[]> {
    // Before the changes: of a window that is changed meanwhile, the change says what held before it.
    const [row] = await this.database.read((statements) => selectNamedWindows(statements, [window]));
    const states = new WindowStates(from, to);
    let aboveId = 0;
    for (let isMore = true; isMore; ) {
      const rows = await this.database.read((statements) =>
        selectChangesAbove(statements, window, aboveId, CHANGES_AT_ONCE),
      );
      isMore = rows.length === CHANGES_AT_ONCE;
      for (const { id, changed_at: at, reason, rate_before, rate_after, evidence } of rows) {
        aboveId = id;
        let bounds: { before: OperatorEvidence['before']; after: OperatorEvidence } | undefined;
        if (reason === 'operator') {
          const after = JSON.parse(evidence) as OperatorEvidence;
          bounds = { after, before: after.before };
        }
        isMore = states.add({ at, reason, rateBefore: rate_before, rateAfter: rate_after, bounds }) && isMore;
      }
      await nextTurn();
    }
    return states.end({ bounds: boundsOfRow(row), rate: row?.rate ?? null });
  }
}
