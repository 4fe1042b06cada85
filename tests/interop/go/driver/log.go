package driver

import "sync"

// Log is what a member has gathered, for members to embed. Its methods may be called from several goroutines.
type Log struct {
	mutex    sync.Mutex
	assigned map[int32]bool
	records  []Record
	read     int
	failure  string
}

// Assign adds partitions.
func (log *Log) Assign(partitions ...int32) {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	if log.assigned == nil {
		log.assigned = map[int32]bool{}
	}
	for _, partition := range partitions {
		log.assigned[partition] = true
	}
}

// Revoke takes partitions away.
func (log *Log) Revoke(partitions ...int32) {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	for _, partition := range partitions {
		delete(log.assigned, partition)
	}
}

// Add appends a record unless the limit (0: none) is reached, and tells whether it did.
func (log *Log) Add(record Record, limit int) bool {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	if limit > 0 && log.read >= limit {
		return false
	}
	log.records = append(log.records, record)
	log.read++
	return true
}

// Full tells whether the limit (0: none) is reached.
func (log *Log) Full(limit int) bool {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	return limit > 0 && log.read >= limit
}

// Fail keeps the first failure.
func (log *Log) Fail(err error) {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	if log.failure == "" {
		log.failure = err.Error()
	}
}

// Progress hands over the records since the last call.
func (log *Log) Progress() Progress {
	log.mutex.Lock()
	defer log.mutex.Unlock()
	progress := Progress{Assigned: []int32{}, Records: log.records, Failure: log.failure}
	for partition := range log.assigned {
		progress.Assigned = append(progress.Assigned, partition)
	}
	log.records = nil
	return progress
}
