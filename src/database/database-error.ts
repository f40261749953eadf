/** The database can't be used as it is; the message says what to do. */
export class DatabaseError extends Error {}

/** The server of the database does not answer. */
export class DatabaseUnreachable extends DatabaseError {}

/** Another process uses the database. */
export class DatabaseInUse extends DatabaseError {}

/** The database belongs to another program. */
export class ForeignDatabase extends DatabaseError {}

/**
 * Thrown by a unit of work if another unit has changed the rows that it has read. The unit is run again from its start,
 * and answered ERR_UNAVAILABLE if that happens several times.
 */
export class UnitConflict extends Error {}

/** A write could not be synced to the disk: from then on the state of the disk is unknown. */
export class SyncFailed extends DatabaseError {
  constructor(override readonly cause: Error) {
    super(
      `A write could not be synced to the disk (${cause.message}), so this process stops: the state of the disk is unknown, ` +
        'and another sync would not reveal it. Check the disk before you start again.',
    );
  }
}
